"""Browse, label and steer the features of finished runs."""
