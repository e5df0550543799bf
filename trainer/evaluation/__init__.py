"""What a crosscoder is worth on rows that training never saw: the run's `evaluate` stage."""
