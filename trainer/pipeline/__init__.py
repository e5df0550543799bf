"""Runs of recipes: their stages, and the commands on them."""
