"""A run on disk: its folder, its progress, its peak memory."""
