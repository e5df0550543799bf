"""Steered texts: the form, the request, what is under way, and what is kept under a permalink."""
