"""Engine and tables of the labels database, which stores labels and generations."""
