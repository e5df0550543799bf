"""Data of the analysed rows: feature codes on disk, moments, reading order, texts and folds."""
