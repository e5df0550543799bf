"""Read-only queries on the runs on this machine; the app has no other SQL on results files."""
