"""Activations of whole crosscoders on a sample of rows, to compare features of different trainings."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.store.store import ActivationStore

SAMPLE = 65_536
"""Most rows on which activations are compared."""


def sampled_activations(store: ActivationStore, crosscoders: Sequence[Crosscoder]) -> list[sp.csc_array]:
    """Activations of several crosscoders on the same evenly spaced rows [rows, features]."""
    step = max(1, store.manifest.rows // SAMPLE)
    parts: list[list[sp.csr_array]] = [[] for _ in crosscoders]
    for block in store.blocks():
        rows = {name: x[::step] for name, x in block.rows.items()}
        for found, crosscoder in zip(parts, crosscoders, strict=True):
            codes = crosscoder.encode(rows)
            at = (codes.row.cpu().numpy(), codes.feature.cpu().numpy())
            values = codes.value.cpu().numpy().astype(np.float64)
            found.append(sp.csr_array((values, at), shape=(codes.rows, crosscoder.features)))
    return [sp.csc_array(sp.vstack(found)) for found in parts]
