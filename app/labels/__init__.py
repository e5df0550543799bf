"""Labels that people write on features."""
