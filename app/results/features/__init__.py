"""Queries on features: the list, one feature, its contexts and tokens."""
