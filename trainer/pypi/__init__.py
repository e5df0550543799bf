"""Models and corpora that come as archives from a Python package index; nothing is installed."""
