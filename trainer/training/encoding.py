"""Forward pass of a training step: from normalised rows to active features and reconstruction errors.

The sparse kinds (TopK, BatchTopK) touch only active entries after one dense product in low precision; `gradients`
computes their gradient explicitly. The dense kinds (L1, JumpReLU) start with most features active, so they compute
whole matrices and use autograd. Axes: R rows, F features of a group, W width of a source, N active pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, Rows
from trainer.crosscoder.groups import Group
from trainer.crosscoder.selection import Search, batch_topk, row_topk
from trainer.kernels import int8_search
from trainer.kernels.int8_search import Int8Search
from trainer.kernels.jumprelu import jumprelu
from trainer.kernels.sparse import SparsePattern, begin_dense_above, subtract_decoded
from trainer.recipe.fitting import SparsityRecipe


class SparseCodes(NamedTuple):
    """Activations of a group as active (row, feature) pairs."""

    pattern: SparsePattern
    value: Tensor
    """Activation of every pair [N]."""

    @property
    def active(self) -> int:
        """Active pairs."""
        return len(self.pattern)

    @property
    def fired(self) -> Tensor:
        """Features active on at least one row [N], with repetitions."""
        return self.pattern.feature


class DenseCodes(NamedTuple):
    """Activations of a group as a matrix."""

    value: Tensor
    """Activations [R, F], zero where not active, with gradient."""
    pre: Tensor
    """Pre-activations [R, F], with gradient."""
    threshold: Tensor | None
    """Thresholds of the activations [F], with gradient; None for zero."""

    @property
    def active(self) -> int:
        """Active pairs."""
        return int(torch.count_nonzero(self.value))

    @property
    def fired(self) -> Tensor:
        """Features active on at least one row."""
        return torch.nonzero(self.value.any(dim=0)).squeeze(1)


@dataclass
class Encoding:
    """Result of the forward pass on one batch."""

    inputs: Callable[[Group], Tensor]
    """Gives a group's inputs, its sources concatenated [R, sum of W], in low precision."""
    codes: dict[str, SparseCodes | DenseCodes]
    """Per group, its activations."""
    errors: Rows
    """Per target, target minus reconstruction [R, W], fp32; with gradient for the dense kinds."""
    smallest: dict[str, float]
    """Per group, the smallest score kept in its budget; empty for the dense kinds."""

    @property
    def active(self) -> int:
        """Active pairs in all groups."""
        return sum(codes.active for codes in self.codes.values())


class BatchEncoder:
    """Finds the active features of a batch: by int8 search where usable, else by a dense product in low precision."""

    def __init__(self, crosscoder: Crosscoder, compute: torch.dtype, *, use_int8: bool = False) -> None:
        """Dense products run in `compute`, those of the dead features' loss included."""
        self.compute, self._crosscoder = compute, crosscoder
        self._use_int8 = use_int8
        self._int8_searches: dict[str, Int8Search] = {}
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def dense(self, group: Group, inputs: Tensor) -> Tensor:
        """Pre-activations of a group [R, F] from its concatenated inputs [R, sum of W], both in `compute`."""
        return torch.nn.functional.linear(inputs, self._copy(group), self._bias(group))

    def search(self, groups: Sequence[Group], rows: Rows, inputs: Callable[[Group], Tensor], share: float) -> Search:
        """Search for these groups' pre-activations above a bound; about `share` of all entries will be kept.

        Int8 search reads the normalised rows, the dense product `inputs` as for `dense`.
        """
        starts = [
            self._begin_int8_search(group, rows)
            if self._use_int8 and share <= int8_search.MAX_KEPT_SHARE and self._crosscoder.int8_usable(group, rows)
            else partial(begin_dense_above, inputs(group), self._copy(group), self._bias(group))
            for group in groups
        ]

        def search(bounds: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
            results = [start(bound) for start, bound in zip(starts, bounds, strict=True)]
            return [result() for result in results]

        return search

    def _begin_int8_search(self, group: Group, rows: Rows) -> Callable[[Tensor], Callable[[], tuple[Tensor, Tensor]]]:
        search = self._crosscoder.prepare_int8_search(group, rows, reuse=self._int8_searches.get(group.name))
        self._int8_searches[group.name] = search
        return lambda bound: partial(search.above, bound)

    def _copy(self, group: Group) -> Tensor:
        """A group's current encoders concatenated [F, sum of W], in `compute`; reuses one buffer per group."""
        encoders = self._crosscoder.group_encoders(group)
        buffer = self._copies.get(group.name)
        if buffer is None:
            width = sum(part.shape[1] for part in encoders)
            buffer = encoders[0].new_empty(group.features, width, dtype=self.compute, requires_grad=False)
            self._copies[group.name] = buffer
        for part, target in zip(encoders, buffer.split([part.shape[1] for part in encoders], dim=1), strict=True):
            target.copy_(part)
        return buffer

    def _bias(self, group: Group) -> Tensor:
        return self._crosscoder.weights[f"encoder_bias.{group.name}"].to(self.compute)


Budgets = list[tuple[tuple[Group, ...], int]]
"""Groups that compete with each other, and the number of active pairs they share."""


def budgets(crosscoder: Crosscoder, recipe: SparsityRecipe, keep: int) -> Budgets:
    """Divide `keep` active pairs, k times the rows, into budgets of groups."""
    groups = crosscoder.groups
    # TopK selects row by row at inference too, where groups are encoded one after another and cannot compete.
    if recipe.kind == "batch_topk" and recipe.budget == "joint" and all(group.k_factor == 1 for group in groups):
        return [(groups, keep)]
    size = crosscoder.features
    return [((group,), max(1, round(keep * group.features / size * group.k_factor))) for group in groups]


@torch.no_grad()
def encode_sparse(  # noqa: PLR0917 - the inputs of one step
    crosscoder: Crosscoder,
    rows: Rows,
    recipe: SparsityRecipe,
    keep: Budgets,
    guess: dict[str, float],
    encoder: BatchEncoder,
) -> Encoding:
    """Encode normalised rows, keep the highest scores within the budgets, and decode.

    `guess` has each group's last threshold. For `topk` a budget must be a multiple of the number of rows.
    """
    inputs = _inputs(crosscoder, rows, encoder.compute)
    count = len(next(iter(rows.values())))
    codes: dict[str, SparseCodes | DenseCodes] = {}
    smallest: dict[str, float] = {}
    for groups, pairs in keep:
        scale = [crosscoder.score_scale(group).clamp_min(1e-6) for group in groups]
        if recipe.kind == "topk":
            pre = [encoder.dense(group, inputs(group)) for group in groups]
            selected = row_topk(pre, scale, max(1, round(pairs / count)))
        else:
            share = pairs / (count * sum(group.features for group in groups))
            search = encoder.search(groups, rows, inputs, share)
            selected = batch_topk(search, scale, pairs, guess[groups[0].name])
        for group, flat, value in zip(groups, selected.kept, selected.value, strict=True):
            pattern = SparsePattern(flat // group.features, flat % group.features, rows=count, features=group.features)
            codes[group.name] = SparseCodes(pattern, value)
            smallest[group.name] = selected.threshold
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), smallest)


def encode_dense(
    crosscoder: Crosscoder, rows: Rows, recipe: SparsityRecipe, log_thresholds: dict[str, Tensor], compute: torch.dtype
) -> Encoding:
    """Encode normalised rows by ReLU, or by JumpReLU for groups with log thresholds [F], and decode."""
    low = {source: x.to(compute) for source, x in rows.items()}
    inputs = _inputs(crosscoder, rows, compute)
    codes: dict[str, SparseCodes | DenseCodes] = {}
    for group in crosscoder.groups:
        pre = crosscoder.pre_activations(group, low).float()
        log_threshold = log_thresholds.get(group.name)
        if log_threshold is None:
            codes[group.name] = DenseCodes(pre.relu(), pre, None)
        else:
            codes[group.name] = DenseCodes(jumprelu(pre, log_threshold, recipe.bandwidth), pre, log_threshold.exp())
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), {})


def _inputs(crosscoder: Crosscoder, rows: Rows, compute: torch.dtype) -> Callable[[Group], Tensor]:
    """Function that gives a group's concatenated inputs [R, sum of W] in `compute`; converts sources only on demand."""
    low = cache(lambda source: rows[source].to(compute))

    def inputs(group: Group) -> Tensor:
        parts, factor = [low(source) for source in group.reads], crosscoder.read_factor(group)
        joined = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return joined if factor == 1.0 else joined * factor

    return inputs


def _errors(crosscoder: Crosscoder, rows: Rows, codes: dict[str, SparseCodes | DenseCodes]) -> Rows:
    """Target minus reconstruction per target [R, W]."""
    errors = {source: rows[source] - crosscoder.weights[f"decoder_bias.{source}"] for source in crosscoder.targets}
    terms = []
    for group in crosscoder.groups:
        activations = codes[group.name]
        for source in group.writes:
            weight = crosscoder.weights[f"decoder.{source}.{group.name}"]
            if isinstance(activations, DenseCodes):
                errors[source] = errors[source] - activations.value @ weight
            else:
                terms.append((activations.pattern, activations.value, weight, errors[source]))
    subtract_decoded(terms)
    return errors
