"""The results file: its schema, and the draft in which it is built, checked and published."""
