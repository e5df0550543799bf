"""Rows that analysis reads: their codes on disk, moments, order, texts and the two cross-fit folds."""
