"""Chance: random numbers for what is planted and turned, which no training draws too.

Weights begin as random directions. Drawn from the same seed, what is planted would be known to the crosscoder before
it has seen a row.
"""

import hashlib

import torch


def chance(*name: object) -> torch.Generator:
    """A generator of its own for every name, made of words and seeds; the same name gives the same numbers."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
