"""What a run will cost, whether this machine can pay it, and what to change if not."""
