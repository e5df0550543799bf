"""Read-only questions to the runs on this machine; SQL lives here and nowhere else in the app."""
