"""Makes random generators for calibration, independent of the generators that training uses.

Weights are initialised with random directions. If spike-ins were drawn from the same stream, their directions could
coincide with initial weights before the crosscoder has seen a row.
"""

import hashlib

import torch


def seeded_generator(*name: object) -> torch.Generator:
    """A generator seeded with the hash of its name, given as words and numbers; reproducible."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
