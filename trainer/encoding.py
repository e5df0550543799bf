"""Encoding: one training batch from normalised rows to active features and reconstruction errors.

Families that keep k features (TopK, BatchTopK) touch only active entries after one dense product in low precision;
their gradient is written out in `trainer.gradients`. Families with a penalty (L1, JumpReLU) begin with most features
active, so they stay dense and leave the gradient to autograd. Axes: R rows,
F features of a group, W width of a source, N active pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.crosscoder import Crosscoder, Rows
from trainer.groups import Group
from trainer.jumprelu import jumprelu
from trainer.kernels import Pattern, begin_dense_above, subtract_decoded
from trainer.recipe import SparsityRecipe
from trainer.sparsity import Search, batch_topk, row_topk


class Sparse(NamedTuple):
    """Activations of a group as pairs."""

    pattern: Pattern
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

    inputs: dict[str, Tensor]
    """Per group, what it reads side by side [R, sum of W], in the compute dtype of `Encoders`."""
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
    """Low-precision copies of the encoders, for the one dense product of a step."""

    def __init__(self, crosscoder: Crosscoder, compute: torch.dtype) -> None:
        """Room for the copies is taken once: fresh memory every step costs as much as the cast."""
        self.compute, self._crosscoder = compute, crosscoder
        self._weights = {
            group.name: torch.empty(
                group.features, sum(crosscoder.widths[s] for s in group.reads), dtype=compute, device=crosscoder.device
            )
            for group in crosscoder.groups
        }

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current weights."""
        for group in self._crosscoder.groups:
            first = 0
            for source in group.reads:
                width = self._crosscoder.widths[source]
                weight = self._crosscoder.weights[f"encoder.{source}.{group.name}"]
                self._weights[group.name][:, first : first + width].copy_(weight)
                first += width

    @torch.no_grad()
    def dense(self, group: Group, inputs: Tensor) -> Tensor:
        """Pre-activations of all features of a group [R, F], in the compute dtype."""
        return torch.nn.functional.linear(inputs, self._weights[group.name], self._bias(group))

    @torch.no_grad()
    def begin_above(self, group: Group, inputs: Tensor, bound: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """What gives flat indices, in order, and values of a group's pre-activations above a bound per feature [F]."""
        return begin_dense_above(inputs, self._weights[group.name], self._bias(group), bound)

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
    encoders.refresh()
    low = {source: x.to(encoders.compute) for source, x in rows.items()}
    inputs = {group.name: _inputs(crosscoder, group, low) for group in crosscoder.groups}
    count = len(next(iter(rows.values())))
    codes: dict[str, Sparse | Dense] = {}
    smallest: dict[str, float] = {}
    for groups, pairs in keep:
        scale = [crosscoder.scale_of(group).clamp_min(1e-6) for group in groups]
        if recipe.kind == "topk":
            pre = [encoders.dense(group, inputs[group.name]) for group in groups]
            selected = row_topk(pre, scale, max(1, round(pairs / count)))
        else:
            selected = batch_topk(_search(groups, inputs, encoders), scale, pairs, guess[groups[0].name])
        for group, flat, value in zip(groups, selected.kept, selected.value, strict=True):
            pattern = Pattern(flat // group.features, flat % group.features, rows=count, features=group.features)
            codes[group.name] = Sparse(pattern, value)
            smallest[group.name] = selected.threshold
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), smallest)


def _search(groups: tuple[Group, ...], inputs: dict[str, Tensor], encoders: Encoders) -> Search:
    def search(bounds: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        begun = [encoders.begin_above(g, inputs[g.name], bound) for g, bound in zip(groups, bounds, strict=True)]
        return [found() for found in begun]

    return search


def encode_dense(
    crosscoder: Crosscoder, rows: Rows, recipe: SparsityRecipe, log_thresholds: dict[str, Tensor], compute: torch.dtype
) -> Encoding:
    """Encode normalised rows by ReLU, or by JumpReLU where there are thresholds (log, [F] per group), and decode."""
    low = {source: x.to(compute) for source, x in rows.items()}
    inputs = {group.name: _inputs(crosscoder, group, low) for group in crosscoder.groups}
    codes: dict[str, Sparse | Dense] = {}
    for group in crosscoder.groups:
        pre = crosscoder.pre_activations(group, low).float()
        log_threshold = log_thresholds.get(group.name)
        if log_threshold is None:
            codes[group.name] = Dense(pre.relu(), pre, None)
        else:
            codes[group.name] = Dense(jumprelu(pre, log_threshold, recipe.bandwidth), pre, log_threshold.exp())
    return Encoding(inputs, codes, _errors(crosscoder, rows, codes), {})


def _inputs(crosscoder: Crosscoder, group: Group, low: Rows) -> Tensor:
    joined = torch.cat([low[source] for source in group.reads], dim=1) if len(group.reads) > 1 else low[group.reads[0]]
    factor = crosscoder.read_factor(group)
    return joined if factor == 1.0 else joined * factor


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
