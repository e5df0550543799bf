"""Puts what a run reports into one list, whatever method found it."""
