"""JSON counterparts of the pages, under /api/v1, at the same paths."""
