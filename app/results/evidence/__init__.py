"""Queries on how well a claim is supported, and the answers in words."""
