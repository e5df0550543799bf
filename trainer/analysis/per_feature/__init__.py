"""Per-feature measures: firing statistics, contexts, logit effects, decoder norms and coherence."""
