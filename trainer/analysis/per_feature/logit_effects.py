"""Finds the tokens that a feature's decoder direction promotes or suppresses in each source.

Direct path only: from the hookpoint through the final norm's gain and the unembedding, skipping all later layers. It
is therefore most informative for late layers and hardly so for early ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from trainer.models.source import Source
from trainer.results.columns import column_types

FEATURES, TOKENS = 512, 16384
"""Features and tokens per matrix product: 16 MiB of scores, small enough for a cache."""
STRIDES = 64
"""Scores per group; a first top-k over the groups' best scores discards the other groups."""
MARGIN = 4
"""Candidates per token kept, which are ranked again in fp32."""


@dataclass(frozen=True)
class Unembedding:
    """Map from a source's last residual stream to its logits: final norm and unembedding matrix."""

    gain: Tensor
    """Gain of the final norm, fp32 [width]."""
    centred: bool
    """Whether the final norm subtracts the mean over the width (LayerNorm) or not (RMSNorm)."""
    weight: Tensor
    """Unembedding [vocabulary, width]."""
    text: Callable[[Sequence[int]], list[str]]
    """Texts of tokens by their ids."""

    @classmethod
    def from_norm(
        cls, final_norm: nn.Module, weight: Tensor, text: Callable[[Sequence[int]], list[str]]
    ) -> "Unembedding":
        """Determine gain and kind of the norm by probing, whatever it stores (Gemma: gain minus one)."""
        width = weight.shape[1]
        device = next((parameter.device for parameter in final_norm.parameters()), weight.device)
        dtype = next((parameter.dtype for parameter in final_norm.parameters()), torch.float32)
        probe = balanced_signs(width)
        with torch.no_grad():
            positive, negative, ones = (
                final_norm(x.to(device, dtype)[None])[0].float().cpu() for x in (probe, -probe, torch.ones(width))
            )
        # The difference cancels a bias; a probe of mean 0 and mean square 1 is multiplied by the gain in both kinds.
        gain = (positive - negative) / (2 * probe)
        bias = (positive + negative) / 2
        centred = bool((ones - bias).abs().max() < 0.01 * gain.abs().max())
        return cls(gain, centred, weight, text)

    @classmethod
    def from_source(cls, source: Source) -> "Unembedding":
        """Unembedding of a loaded model, whose other weights it does not keep. Raises SourceError if it has none."""
        tokenizer = source.tokenizer.backend_tokenizer

        def text(ids: Sequence[int]) -> list[str]:
            texts: list[str] = tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=False)
            return texts

        return cls.from_norm(source.final_norm, source.unembedding.detach(), text)

    @classmethod
    def from_sources(cls, sources: Iterable[Source], notify: Callable[[str], None]) -> dict[str, "Unembedding"]:
        """Unembeddings by source; `notify` is told which logits are left out, and why."""
        for source in sources:
            if source.logit_obstacle is not None:
                notify(f"{source.name}: which tokens its features promote is left out, because {source.logit_obstacle}")
        return {source.name: cls.from_source(source) for source in sources if source.logit_obstacle is None}

    def through_norm(self, direction: Tensor) -> Tensor:
        """Directions [F, W] after the final norm without its division by the norm, fp32."""
        if self.centred:
            direction = direction - direction.mean(dim=1, keepdim=True)
        return direction * self.gain.to(direction.device)


@dataclass(frozen=True)
class LogitEffects:
    """Most promoted and most suppressed tokens. Axes F features, K tokens kept."""

    promoted: np.ndarray
    """Token ids [F, K], strongest first."""
    promotion: np.ndarray
    """Effects [F, K]."""
    suppressed: np.ndarray
    """Token ids [F, K], strongest first."""
    suppression: np.ndarray
    """Effects [F, K], negative where tokens are suppressed."""


def balanced_signs(width: int) -> Tensor:
    """A vector [width] with mean 0 and mean square 1 and no zero in it; width at least 2."""
    signs = torch.ones(width)
    signs[1::2] = -1
    if width % 2:
        half = 2**-0.5
        signs[-3:] = torch.tensor([2**0.5, -half, -half])
    return signs


def logit_effects(direction: Tensor, unembedding: Unembedding, count: int) -> LogitEffects:
    """The `count` strongest effects of directions [F, W], which are scaled to length one.

    Candidates come from a bf16 product where the device multiplies bf16 natively, and are ranked by an fp32 product.
    """
    unit = direction.float() / torch.linalg.vector_norm(direction.float(), dim=1, keepdim=True).clamp_min(1e-12)
    after = unembedding.through_norm(unit)
    weight = unembedding.weight
    count = min(count, len(weight))
    parts = []
    for first in range(0, len(after), FEATURES):
        rows = after[first : first + FEATURES]
        high, low = _candidates(rows, weight, min(MARGIN * count, len(weight)))
        parts.append((*_ranked(rows, weight, high, count), *_ranked(-rows, weight, low, count)))
    if not parts:
        ids, effects = np.zeros((0, count), np.int64), np.zeros((0, count), np.float32)
        return LogitEffects(ids, effects, ids, effects)
    promoted, promotion, suppressed, suppression = (
        torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
    )
    return LogitEffects(promoted, promotion, suppressed, 0 - suppression)


def product_dtype(device: torch.device) -> torch.dtype:
    """bf16 if the device multiplies it natively, else fp32."""
    if device.type != "cpu":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


def _candidates(rows: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Token ids of the highest and the lowest scores [F, count] each, computed tile by tile."""
    dtype = product_dtype(weight.device)
    rows = rows.to(weight.device, dtype)
    buffer = rows.new_empty(len(rows), min(TOKENS, len(weight)))
    found: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
    for first in range(0, len(weight), TOKENS):
        tile = weight[first : first + TOKENS].to(dtype)
        score = torch.mm(rows, tile.T, out=buffer if len(tile) == buffer.shape[1] else None)
        for largest, parts in found.items():
            value, index = _extreme(score, count, largest=largest)
            parts.append((value, index + first))
    high, low = (_merged(parts, count, largest=largest) for largest, parts in found.items())
    return high, low


def _extreme(score: Tensor, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The `count` largest or smallest scores of every row and their columns; all scores if there are fewer."""
    columns = score.shape[1] // STRIDES
    if score.shape[1] % STRIDES or columns < count:
        return score.topk(min(count, score.shape[1]), dim=1, largest=largest)
    # The `count` best scores lie in at most `count` of the strided columns.
    strided = score.view(len(score), STRIDES, columns)
    best = strided.amax(dim=1) if largest else strided.amin(dim=1)
    column = best.topk(count, dim=1, largest=largest).indices[:, None].expand(-1, STRIDES, -1)
    value, flat = strided.gather(2, column).flatten(1).topk(count, dim=1, largest=largest)
    return value, flat // count * columns + column[:, 0].gather(1, flat % count)


def _merged(parts: Sequence[tuple[Tensor, Tensor]], count: int, *, largest: bool) -> Tensor:
    """Columns of the best scores among the best of several tiles."""
    value, index = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    best = value.topk(min(count, value.shape[1]), dim=1, largest=largest).indices
    return index.gather(1, best)


def _ranked(rows: Tensor, weight: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and fp32 scores of the best candidates [F, count]."""
    parts = []
    for first in range(0, len(rows), 64):
        some = candidates[first : first + 64]
        exact = torch.einsum("fcw,fw->fc", weight[some].float(), rows[first : first + 64].to(weight.device))
        value, best = exact.topk(count, dim=1)
        parts.append((some.gather(1, best), value))
    ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return ids, values


def logit_columns(
    feature: np.ndarray, source: int, effects: LogitEffects, text: Callable[[Sequence[int]], list[str]]
) -> pa.Table:
    """Columns of the table `logit` for features [F] in one source, by feature, promoted tokens first.

    They have the types of the results, also of no feature at all.
    """
    features, count = effects.promoted.shape
    rank = np.arange(1, count + 1)
    ids, word_index = np.unique(np.concatenate([effects.promoted, effects.suppressed], axis=1), return_inverse=True)
    words = pa.array(text(ids.astype(int).tolist()), pa.string())
    columns = {
        "feature": np.repeat(feature, 2 * count),
        "source": np.full(features * 2 * count, source),
        "rank": np.tile(np.concatenate([rank, -rank]), features),
        "token": words.take(pa.array(word_index.ravel())),
        "effect": np.concatenate([effects.promotion, effects.suppression], axis=1).ravel(),
    }
    return pa.table(columns, schema=pa.schema(column_types("logit").items()))
