"""The database that people write to; labels and generations stand beside each other on its engine and tables."""
