"""Losses: what one training step minimises, from normalised rows to numbers with gradients.

Axes: R rows, F features of a group, W width of a source, N active pairs of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.crosscoder import Crosscoder, Rows
from trainer.groups import Group
from trainer.kernels import Pattern, decode_active, encode_active
from trainer.sparsity import batch_topk


@dataclass
class Forward:
    """One forward pass over a batch."""

    inputs: dict[str, Tensor]
    """Per group, what it reads side by side [R, sum of W], in the compute dtype of `Encoders`."""
    patterns: dict[str, Pattern]
    values: dict[str, Tensor]
    errors: Rows
    """Per source, target minus reconstruction [R, W], fp32, with gradient."""
    smallest: dict[str, float]
    """Per group, the smallest score kept in its budget."""

    @property
    def reconstruction(self) -> Tensor:
        """Mean squared error per coordinate, averaged over sources: 1 when nothing is explained."""
        return torch.stack([error.square().mean() for error in self.errors.values()]).mean()

    @property
    def active(self) -> int:
        """Active pairs in all groups."""
        return sum(map(len, self.patterns.values()))


def forward(
    crosscoder: Crosscoder,
    rows: Rows,
    budgets: list[tuple[tuple[Group, ...], int]],
    guess: dict[str, float],
    encoders: "Encoders",
) -> Forward:
    """Encode, select by BatchTopK and decode normalised rows [R, W].

    Each budget is a set of groups that compete for a number of active pairs; guesses are the last thresholds. Only the
    dense encoder product is in low precision.
    """
    encoders.refresh()
    low = {source: x.to(encoders.compute) for source, x in rows.items()}
    inputs = {group.name: _inputs(crosscoder, group, low) for group in crosscoder.groups}
    count = len(next(iter(rows.values())))
    patterns, values, smallest = {}, {}, {}
    for groups, keep in budgets:
        scale = [crosscoder.scale_of(group).detach().clamp_min(1e-6) for group in groups]
        pre = [encoders.dense(group, inputs[group.name]) for group in groups]
        selected = batch_topk(pre, scale, keep, guess[groups[0].name])
        for group, dense, flat in zip(groups, pre, selected.kept, strict=True):
            pattern = Pattern(flat // group.features, flat % group.features, rows=count, features=group.features)
            patterns[group.name] = pattern
            values[group.name] = _attach(crosscoder, group, dense.reshape(-1)[flat].float(), pattern, rows)
            smallest[group.name] = selected.threshold
    return Forward(inputs, patterns, values, _errors(crosscoder, rows, patterns, values), smallest)


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
        bias = self._crosscoder.weights[f"encoder_bias.{group.name}"].to(self.compute)
        return torch.nn.functional.linear(inputs, self._weights[group.name], bias)


def dead_features_loss(crosscoder: Crosscoder, done: Forward, dead: dict[str, Tensor], k: int) -> Tensor | None:
    """AuxK (Gao et al. 2024): dead features reconstruct what the living ones left, through the same blocks.

    Returns the error left as a share of the target's, or None when no group has dead features. The target
    is detached: the living features must not learn from it. The decoder bias is not added, it is in the error already.
    """
    parts: dict[str, list[Tensor]] = {source: [] for source in crosscoder.sources}
    for group in crosscoder.groups:
        index = dead[group.name]
        if not len(index):
            continue
        pre = _dense_pre(crosscoder, group, index, done.inputs[group.name])
        kept = torch.topk(pre, min(k, len(index)), dim=1, sorted=False)
        active = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
        for source in group.writes:
            weight = crosscoder.weights[f"decoder.{source}.{group.name}"].index_select(0, index)
            parts[source].append(active @ weight.to(active.dtype))
    losses = []
    for source, contributions in parts.items():
        if contributions:
            target = done.errors[source].detach()
            guess = torch.stack(contributions).sum(dim=0).float()
            losses.append((target - guess).square().mean() / target.square().mean().clamp_min(1e-9))
    return torch.stack(losses).mean() if losses else None


def _inputs(crosscoder: Crosscoder, group: Group, low: Rows) -> Tensor:
    joined = torch.cat([low[source] for source in group.reads], dim=1) if len(group.reads) > 1 else low[group.reads[0]]
    factor = crosscoder.read_factor(group)
    return joined if factor == 1.0 else joined * factor


def _attach(crosscoder: Crosscoder, group: Group, pre: Tensor, pattern: Pattern, rows: Rows) -> Tensor:
    factor = crosscoder.read_factor(group)
    inputs = [rows[source] if factor == 1.0 else rows[source] * factor for source in group.reads]
    weights = [crosscoder.weights[f"encoder.{source}.{group.name}"] for source in group.reads]
    return encode_active(pre, pattern, crosscoder.weights[f"encoder_bias.{group.name}"], inputs, weights)


def _errors(crosscoder: Crosscoder, rows: Rows, patterns: dict[str, Pattern], values: dict[str, Tensor]) -> Rows:
    errors = {source: x - crosscoder.weights[f"decoder_bias.{source}"] for source, x in rows.items()}
    for group in crosscoder.groups:
        for source in group.writes:
            weight = crosscoder.weights[f"decoder.{source}.{group.name}"]
            errors[source] = errors[source] - decode_active(patterns[group.name], values[group.name], weight)
    return errors


def _dense_pre(crosscoder: Crosscoder, group: Group, index: Tensor, inputs: Tensor) -> Tensor:
    """Pre-activations of some features of a group [R, features], with gradient."""
    weight = torch.cat(
        [crosscoder.weights[f"encoder.{source}.{group.name}"].index_select(0, index) for source in group.reads], dim=1
    )
    bias = crosscoder.weights[f"encoder_bias.{group.name}"].index_select(0, index)
    return torch.nn.functional.linear(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))
