"""The activation store on disk, and shuffled batches read from it."""
