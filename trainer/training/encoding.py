"""Encoding: one training batch from normalised rows to active features and reconstruction errors.

Families that keep k features (TopK, BatchTopK) touch only active entries after one dense product in low precision;
their gradient is written out in `gradients`. Families with a penalty (L1, JumpReLU) begin with most features
active, so they stay dense and leave the gradient to autograd. Axes: R rows,
F features of a group, W width of a source, N active pairs.
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
from trainer.kernels.int8_search import Screen
from trainer.kernels.jumprelu import jumprelu
from trainer.kernels.sparse import SparsePattern, begin_dense_above, subtract_decoded
from trainer.recipe.fitting import SparsityRecipe


class Sparse(NamedTuple):
    """Activations of a group as pairs."""

    pattern: SparsePattern
    value: Tensor
    """Activation of every pair [N]."""

    @property
    def active(self) -> int:
        """Active pairs."""
        return len(self.pattern)

    @property
    def fired(self) -> Tensor:
        """Features active on at least one row, perhaps several times over."""
        return self.pattern.feature


class Dense(NamedTuple):
    """Activations of a group as a whole matrix."""

    value: Tensor
    """Activations [R, F], zero where not active, with gradient."""
    pre: Tensor
    """Pre-activations [R, F], with gradient."""
    threshold: Tensor | None
    """What they had to exceed [F], with gradient; None for zero."""

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
    """What one batch became."""

    inputs: Callable[[Group], Tensor]
    """What a group reads side by side [R, sum of W], in low precision."""
    codes: dict[str, Sparse | Dense]
    """Per group, its activations."""
    errors: Rows
    """Per target, target minus reconstruction [R, W], fp32; with gradient in the dense families."""
    smallest: dict[str, float]
    """Per group, the smallest score kept in its budget; empty without budgets."""

    @property
    def active(self) -> int:
        """Active pairs in all groups."""
        return sum(codes.active for codes in self.codes.values())


class Encoders:
    """What finds the active features of a batch: screening where it can, else a dense product in low precision."""

    def __init__(self, crosscoder: Crosscoder, compute: torch.dtype, *, screened: bool = False) -> None:
        """`compute` is what dense products run in, of all features or of dead ones alone."""
        self.compute, self._crosscoder = compute, crosscoder
        self._screened = screened
        self._screens: dict[str, Screen] = {}
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def dense(self, group: Group, inputs: Tensor) -> Tensor:
        """Pre-activations of all features of a group [R, F] from what it reads side by side, both in `compute`."""
        return torch.nn.functional.linear(inputs, self._copy(group), self._bias(group))

    def search(self, groups: Sequence[Group], rows: Rows, inputs: Callable[[Group], Tensor], share: float) -> Search:
        """What finds these groups' pre-activations above a bound, of which about a share will be kept.

        It takes normalised rows, or `inputs` as for `dense`.
        """
        begin = [
            self._screen(group, rows)
            if self._screened and share <= int8_search.MOST and self._crosscoder.screenable(group, rows)
            else partial(begin_dense_above, inputs(group), self._copy(group), self._bias(group))
            for group in groups
        ]

        def search(bounds: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
            begun = [begin_one(bound) for begin_one, bound in zip(begin, bounds, strict=True)]
            return [found() for found in begun]

        return search

    def _screen(self, group: Group, rows: Rows) -> Callable[[Tensor], Callable[[], tuple[Tensor, Tensor]]]:
        screen = self._crosscoder.screen(group, rows, instead_of=self._screens.get(group.name))
        self._screens[group.name] = screen
        return lambda bound: partial(screen.above, bound)

    def _copy(self, group: Group) -> Tensor:
        """A group's encoders side by side [F, sum of W] as they are now, always in the same memory."""
        encoders = self._crosscoder.encoders_of(group)
        room = self._copies.get(group.name)
        if room is None:
            width = sum(part.shape[1] for part in encoders)
            room = encoders[0].new_empty(group.features, width, dtype=self.compute, requires_grad=False)
            self._copies[group.name] = room
        for part, place in zip(encoders, room.split([part.shape[1] for part in encoders], dim=1), strict=True):
            place.copy_(part)
        return room

    def _bias(self, group: Group) -> Tensor:
        return self._crosscoder.weights[f"encoder_bias.{group.name}"].to(self.compute)


Budgets = list[tuple[tuple[Group, ...], int]]
"""Groups that compete with each other, and how many active pairs they share."""


def budgets(crosscoder: Crosscoder, recipe: SparsityRecipe, keep: int) -> Budgets:
    """What `keep` active pairs, k times the rows, are divided into."""
    groups = crosscoder.groups
    # TopK decides row by row at inference too, where groups cannot compete without being computed together.
    if recipe.kind == "batch_topk" and recipe.budget == "joint" and all(group.k_factor == 1 for group in groups):
        return [(groups, keep)]
    size = crosscoder.features
    return [((group,), max(1, round(keep * group.features / size * group.k_factor))) for group in groups]


@torch.no_grad()
def encode_sparse(  # noqa: PLR0917 - the parts of one step, all of them needed
    crosscoder: Crosscoder,
    rows: Rows,
    recipe: SparsityRecipe,
    keep: Budgets,
    guess: dict[str, float],
    encoders: Encoders,
) -> Encoding:
    """Encode normalised rows, keep what the budgets allow, and decode.

    Guesses are the last thresholds. With `topk` a budget is kept row by row, so it must divide by the rows.
    """
    inputs = _inputs(crosscoder, rows, encoders.compute)
    count = len(next(iter(rows.values())))
    codes: dict[str, Sparse | Dense] = {}
    smallest: dict[str, float] = {}
    for groups, pairs in keep:
        scale = [crosscoder.scale_of(group).clamp_min(1e-6) for group in groups]
        if recipe.kind == "topk":
            pre = [encoders.dense(group, inputs(group)) for group in groups]
            selected = row_topk(pre, scale, max(1, round(pairs / count)))
        else:
            share = pairs / (count * sum(group.features for group in groups))
            search = encoders.search(groups, rows, inputs, share)
            selected = batch_topk(search, scale, pairs, guess[groups[0].name])
        for group, flat, value in zip(groups, selected.kept, selected.value, strict=True):
            pattern = SparsePattern(flat // group.features, flat % group.features, rows=count, features=group.features)
            codes[group.name] = Sparse(pattern, value)
            smallest[group.name] = selected.threshold
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), smallest)


def encode_dense(
    crosscoder: Crosscoder, rows: Rows, recipe: SparsityRecipe, log_thresholds: dict[str, Tensor], compute: torch.dtype
) -> Encoding:
    """Encode normalised rows by ReLU, or by JumpReLU where there are thresholds (log, [F] per group), and decode."""
    low = {source: x.to(compute) for source, x in rows.items()}
    inputs = _inputs(crosscoder, rows, compute)
    codes: dict[str, Sparse | Dense] = {}
    for group in crosscoder.groups:
        pre = crosscoder.pre_activations(group, low).float()
        log_threshold = log_thresholds.get(group.name)
        if log_threshold is None:
            codes[group.name] = Dense(pre.relu(), pre, None)
        else:
            codes[group.name] = Dense(jumprelu(pre, log_threshold, recipe.bandwidth), pre, log_threshold.exp())
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), {})


def _inputs(crosscoder: Crosscoder, rows: Rows, compute: torch.dtype) -> Callable[[Group], Tensor]:
    """What gives a group's inputs side by side, in `compute`; no copy is made of what nobody asks for."""
    low = cache(lambda source: rows[source].to(compute))

    def inputs(group: Group) -> Tensor:
        parts, factor = [low(source) for source in group.reads], crosscoder.read_factor(group)
        joined = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return joined if factor == 1.0 else joined * factor

    return inputs


def _errors(crosscoder: Crosscoder, rows: Rows, codes: dict[str, Sparse | Dense]) -> Rows:
    errors = {source: rows[source] - crosscoder.weights[f"decoder_bias.{source}"] for source in crosscoder.targets}
    terms = []
    for group in crosscoder.groups:
        found = codes[group.name]
        for source in group.writes:
            weight = crosscoder.weights[f"decoder.{source}.{group.name}"]
            if isinstance(found, Dense):
                errors[source] = errors[source] - found.value @ weight
            else:
                terms.append((found.pattern, found.value, weight, errors[source]))
    subtract_decoded(terms)
    return errors
