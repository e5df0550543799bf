"""The results file: its schema, and the draft it is built in, checked and published from."""
