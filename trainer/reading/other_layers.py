"""Reads rows that were harvested at one layer of a model at other layers of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.models.hookpoint import Hookpoint, locate, read_each
from trainer.models.source import Source
from trainer.reading.activations import batches_by_length, mask_of, padded
from trainer.reading.alignment import positions
from trainer.store.store import ActivationStore

SEQUENCES = 256
"""Sequences whose tokens are in memory at a time."""


class _LayersOf(NamedTuple):
    """What is read, and how."""

    source: Source
    number: int
    """Index of the source among those of the store."""
    hookpoints: Sequence[Hookpoint]
    batch_tokens: int


def read_rows(
    store: ActivationStore,
    source: Source,
    layers: Sequence[int],
    sequence: np.ndarray,
    byte_end: np.ndarray,
    *,
    batch_tokens: int,
) -> list[Tensor]:
    """Residual stream after each of some layers, at rows of a store, bf16 [rows, width] each.

    Rows are given by their sequence and the byte of its text at which their token ends, both int64 [rows]; the store
    has texts with token ids. A batch has at most `batch_tokens` tokens.
    """
    hookpoints = [locate(source, "resid_post", layer) for layer in layers]
    number = [one.name for one in store.sources].index(source.name)
    out = [torch.empty(len(sequence), source.width, dtype=torch.bfloat16) for _ in layers]
    order = np.lexsort((byte_end, sequence))
    numbers, starts = np.unique(sequence[order], return_index=True)
    rows = dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))
    reader = _LayersOf(source, number, hookpoints, batch_tokens)
    for first in range(0, len(numbers), SEQUENCES):
        some = numbers[first : first + SEQUENCES]
        table = store.sequences(only=some.tolist(), columns=["sequence", "tokens", "token_ids"])
        assert table is not None, "the store has texts"
        _read_some(reader, table, rows, byte_end, out)
    return out


def _read_some(
    reader: _LayersOf, table: pa.Table, rows: dict[int, np.ndarray], byte_end: np.ndarray, out: list[Tensor]
) -> None:
    """Fill in the rows of a table of sequences, by sequence in the order of their bytes."""
    source, number, hookpoints, batch_tokens = reader
    lines = table.to_pylist()
    ids = [np.asarray(line["token_ids"][number]) for line in lines]
    for batch in batches_by_length([len(one) for one in ids], batch_tokens):
        tokens = padded([ids[n] for n in batch], source.tokenizer.pad_token_id or 0).to(source.device)
        mask = mask_of([len(ids[n]) for n in batch], source.device)
        activations = read_each(source, hookpoints, tokens, mask)
        for line, n in enumerate(batch):
            mine = rows[lines[n]["sequence"]]
            ends = np.asarray([token["byte_end"] for token in lines[n]["tokens"][number]])
            at = torch.from_numpy(positions(ends, byte_end[mine]))
            for layer, activation in zip(out, activations, strict=True):
                layer[torch.from_numpy(mine)] = activation[line, at.to(activation.device)].to(torch.bfloat16).cpu()
