"""The results file: its schema (`schema.sql`), and the draft in which it is built, checked and published."""
