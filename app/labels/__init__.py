"""Labels people write and generations they asked for, in a database of their own."""
