"""Lens: the activation difference lens (arXiv 2510.13900), what a source has everywhere that its base has not.

The mean difference of two sources' activations at the first tokens of many unrelated texts. A narrow fine-tune leaves
a trace there that the logit lens often reads, and one that no feature of a crosscoder need carry, because it is on all
rows. Only sources of one space have a difference: between models that were trained apart it means nothing.
Axes: P positions, W width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.analysis.per_feature.logit_effects import Unembedding, logit_effects
from trainer.analysis.rows.texts import COLUMNS, read_texts
from trainer.store.store import ActivationStore

POSITIONS = 5
"""First tokens of a text that are looked at, as in the paper."""
FEWEST = 20
"""Texts that a position needs: below, the mean is mostly the texts' own."""
WIDE = 32
"""Bits for the byte in a key that sorts by sequence first."""


@dataclass(frozen=True)
class Trace:
    """The mean difference of two sources of one space, source minus base, at the first positions."""

    texts: np.ndarray
    """Texts that have a row there [P]."""
    mean: Tensor
    """fp64 [P, W], in raw activations."""
    expected_norm: np.ndarray
    """Norm that the mean would have if every text's difference pointed in a direction of its own [P]."""
    typical_norm: np.ndarray
    """Mean norm of the base's activations there [P]."""

    @property
    def norm(self) -> np.ndarray:
        """Norm of the mean difference [P]."""
        found: np.ndarray = torch.linalg.vector_norm(self.mean, dim=1).numpy()
        return found


def first_places(sequences: pa.Table, sources: int, source: int) -> np.ndarray:
    """Keys (sequence, byte) of the first tokens of every text, int64 [texts, P]; -1 where a text is shorter.

    Tokens are counted in one source, without those on no byte of the text (BOS). Chats are left out where there is
    other text, because a source with a chat template has read other tokens before them.
    """
    texts = read_texts(sequences, sources)
    chat = np.asarray(sequences["is_chat"].to_numpy(), bool)
    keys = np.full((texts.sequences, POSITIONS), -1, np.int64)
    for sequence in np.flatnonzero(~chat | chat.all()).tolist():
        tokens = slice(*texts.token_start[sequence * sources + source :][:2].tolist())
        ends = texts.token_end[tokens][: 8 * POSITIONS]
        ends = ends[ends >= 0][:POSITIONS]
        keys[sequence, : len(ends)] = (sequence << WIDE) + ends.astype(np.int64)
    return keys


def trace(store: ActivationStore, base: str, source: str) -> Trace:
    """The mean difference over all texts of a store that has documents. Raises StoreError when they do not fit."""
    sequences = store.sequences(columns=[*COLUMNS, "is_chat"])
    assert sequences is not None, "a store without texts has no first tokens"
    names = [one.name for one in store.sources]
    keys = first_places(sequences, len(names), names.index(base))
    place = np.tile(np.arange(POSITIONS), (len(keys), 1))[keys >= 0]
    order = np.argsort(keys[keys >= 0])
    keys, place = keys[keys >= 0][order], place[order]
    width = store.widths[base]
    mean = torch.zeros(POSITIONS, width, dtype=torch.float64)
    squares, sizes, texts = (torch.zeros(POSITIONS, dtype=torch.float64) for _ in range(3))
    for block in store.blocks(rows=65_536):
        assert block.sequence is not None, "rows of a store with texts have places"
        assert block.byte_end is not None, "and their ends"
        row_keys = (block.sequence.numpy().astype(np.int64) << WIDE) + block.byte_end.numpy()
        at = np.minimum(np.searchsorted(keys, row_keys), max(len(keys) - 1, 0))
        rows = np.flatnonzero(keys[at] == row_keys) if len(keys) else np.zeros(0, np.int64)
        where, some = torch.from_numpy(place[at[rows]]), torch.from_numpy(rows)
        here, there = block.rows[base][some].double(), block.rows[source][some].double()
        mean.index_add_(0, where, there - here)
        squares.index_add_(0, where, (there - here).square().sum(dim=1))
        sizes.index_add_(0, where, torch.linalg.vector_norm(here, dim=1))
        texts += torch.bincount(where, minlength=POSITIONS)
    count = texts.clamp_min(1)
    mean /= count[:, None]
    spread = (squares / count - mean.square().sum(dim=1)).clamp_min(0)
    return Trace(texts.long().numpy(), mean, (spread / count).sqrt().numpy(), (sizes / count).numpy())


def difference_rows(found: Trace, names: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_difference`, for positions with enough texts; `names` are the pair's indexes."""
    return [
        {
            "base": names[0],
            "source": names[1],
            "position": position,
            "texts": int(found.texts[position]),
            "norm": float(found.norm[position]),
            "expected_norm": float(found.expected_norm[position]),
            "typical_norm": float(found.typical_norm[position]),
        }
        for position in _enough(found)
    ]


def lens_rows(
    found: Trace, names: tuple[int, int], reader: int, unembedding: Unembedding, count: int
) -> list[dict[str, Any]]:
    """Rows of the table `baseline_lens`: what the differences promote and suppress through one source's unembedding.

    A difference of length zero has no direction, and so no rows.
    """
    some = [position for position in _enough(found) if found.norm[position] > 0]
    effects = logit_effects(found.mean[some].float(), unembedding, count)
    rows = []
    for row, position in enumerate(some):
        for sign, ids, values in (
            (1, effects.promoted[row], effects.promotion[row]),
            (-1, effects.suppressed[row], effects.suppression[row]),
        ):
            tokens = unembedding.text(ids.tolist())
            for rank, (token, value) in enumerate(zip(tokens, values.tolist(), strict=True), start=1):
                rows.append(
                    {
                        "base": names[0],
                        "source": names[1],
                        "reader": reader,
                        "position": position,
                        "rank": sign * rank,
                        "token": token,
                        "effect": value,
                    }
                )
    return rows


def _enough(found: Trace) -> list[int]:
    """Positions with enough texts."""
    return np.flatnonzero(found.texts >= FEWEST).tolist()
