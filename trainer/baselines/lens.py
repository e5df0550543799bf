"""Activation difference lens (arXiv 2510.13900): mean differences at first tokens, read as logits.

The difference is averaged over the first tokens of many unrelated sequences. A narrow fine-tune leaves a bias there
that the logit lens often makes readable, and that no feature of a crosscoder need represent, because it is on all rows.
It is defined only for sources of one space; between models that were trained separately it means nothing.
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
"""First tokens of a sequence that are averaged over, as in the paper."""
MIN_TEXTS = 20
"""Sequences that a position needs; with fewer, the mean is dominated by the individual sequences."""
BYTE_BITS = 32
"""Low bits of a key that hold the byte; the sequence number is above them."""


@dataclass(frozen=True)
class MeanDifference:
    """Mean difference of two sources of one space, source minus base, at the first positions."""

    texts: np.ndarray
    """Number of sequences with a row there [P]."""
    mean: Tensor
    """fp64 [P, W], of raw activations."""
    expected_norm: np.ndarray
    """Expected norm of the mean if the sequences' deviations from it were independent [P]."""
    typical_norm: np.ndarray
    """Mean norm of the base's activations there [P]."""

    @property
    def norm(self) -> np.ndarray:
        """Norm of the mean difference [P]."""
        norm: np.ndarray = torch.linalg.vector_norm(self.mean, dim=1).numpy()
        return norm


def first_token_keys(sequences: pa.Table, sources: int, source: int) -> np.ndarray:
    """Keys (sequence, byte end) of the first tokens of every sequence, int64 [sequences, P]; -1 beyond its end.

    Tokens are those of one source, without tokens on no byte of the text (BOS). Chats are left out where there is other
    text, because a source with a chat template has read other tokens before them.
    """
    texts = read_texts(sequences, sources)
    chat = np.asarray(sequences["is_chat"].to_numpy(), bool)
    keys = np.full((texts.sequences, POSITIONS), -1, np.int64)
    for sequence in np.flatnonzero(~chat | chat.all()).tolist():
        tokens = slice(*texts.token_start[sequence * sources + source :][:2].tolist())
        ends = texts.token_end[tokens][: 8 * POSITIONS]
        ends = ends[ends >= 0][:POSITIONS]
        keys[sequence, : len(ends)] = (sequence << BYTE_BITS) + ends.astype(np.int64)
    return keys


def mean_difference(store: ActivationStore, base: str, source: str) -> MeanDifference:
    """Mean difference over all sequences of a store with texts. Raises StoreError when rows and texts do not fit."""
    sequences = store.sequences(columns=[*COLUMNS, "is_chat"])
    assert sequences is not None, "stores without texts have no first tokens"
    indexes = [one.name for one in store.sources]
    keys = first_token_keys(sequences, len(indexes), indexes.index(base))
    position = np.tile(np.arange(POSITIONS), (len(keys), 1))[keys >= 0]
    order = np.argsort(keys[keys >= 0])
    keys, position = keys[keys >= 0][order], position[order]
    width = store.widths[base]
    mean = torch.zeros(POSITIONS, width, dtype=torch.float64)
    squares, sizes, texts = (torch.zeros(POSITIONS, dtype=torch.float64) for _ in range(3))
    for block in store.blocks(rows=65_536):
        assert block.sequence is not None, "rows of a store with texts have a sequence"
        assert block.byte_end is not None, "rows of a store with texts have a byte end"
        row_keys = (block.sequence.numpy().astype(np.int64) << BYTE_BITS) + block.byte_end.numpy()
        at = np.minimum(np.searchsorted(keys, row_keys), max(len(keys) - 1, 0))
        rows = np.flatnonzero(keys[at] == row_keys) if len(keys) else np.zeros(0, np.int64)
        positions, selected = torch.from_numpy(position[at[rows]]), torch.from_numpy(rows)
        x_base, x_source = block.rows[base][selected].double(), block.rows[source][selected].double()
        mean.index_add_(0, positions, x_source - x_base)
        squares.index_add_(0, positions, (x_source - x_base).square().sum(dim=1))
        sizes.index_add_(0, positions, torch.linalg.vector_norm(x_base, dim=1))
        texts += torch.bincount(positions, minlength=POSITIONS)
    count = texts.clamp_min(1)
    mean /= count[:, None]
    spread = (squares / count - mean.square().sum(dim=1)).clamp_min(0)
    return MeanDifference(texts.long().numpy(), mean, (spread / count).sqrt().numpy(), (sizes / count).numpy())


def difference_rows(difference: MeanDifference, indexes: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_difference`, for positions with enough sequences; `indexes` are the pair's."""
    return [
        {
            "base": indexes[0],
            "source": indexes[1],
            "position": position,
            "texts": int(difference.texts[position]),
            "norm": float(difference.norm[position]),
            "expected_norm": float(difference.expected_norm[position]),
            "typical_norm": float(difference.typical_norm[position]),
        }
        for position in _enough(difference)
    ]


def lens_rows(
    difference: MeanDifference, indexes: tuple[int, int], reader: int, unembedding: Unembedding, count: int
) -> list[dict[str, Any]]:
    """Rows of the table `baseline_lens`: tokens promoted and suppressed most through the unembedding of `reader`.

    A difference of norm zero has no rows; effects that are not a number have none either.
    """
    positions = [position for position in _enough(difference) if difference.norm[position] > 0]
    effects = logit_effects(difference.mean[positions].float(), unembedding, count)
    rows = []
    for row, position in enumerate(positions):
        for sign, ids, values in (
            (1, effects.promoted[row], effects.promotion[row]),
            (-1, effects.suppressed[row], effects.suppression[row]),
        ):
            tokens = unembedding.text(ids.tolist())
            for rank, (token, value) in enumerate(zip(tokens, values.tolist(), strict=True), start=1):
                if not np.isfinite(value):
                    continue
                rows.append(
                    {
                        "base": indexes[0],
                        "source": indexes[1],
                        "reader": reader,
                        "position": position,
                        "rank": sign * rank,
                        "token": token,
                        "effect": value,
                    }
                )
    return rows


def _enough(difference: MeanDifference) -> list[int]:
    """Positions with at least MIN_TEXTS sequences."""
    return np.flatnonzero(difference.texts >= MIN_TEXTS).tolist()
