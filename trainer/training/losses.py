"""Losses: what one training step minimises. Axes: R rows, F features of a group, W width of a source.

Errors are counted per coordinate, so that with normalised rows a loss of 1 means nothing is explained. Penalties
are divided by the same number of coordinates, so that coefficients have the literature's units (squared error
summed over coordinates).
"""

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.recipe.fitting import SparsityRecipe
from trainer.training.encoding import Dense, Encoding
from trainer.training.gradients import chosen_rows


def reconstruction_loss(encoding: Encoding, kind: str | None = None) -> Tensor:
    """Mean squared error per coordinate, averaged over targets; for `norm`, the mean of its root over every row."""
    if kind == "norm":
        roots = [torch.linalg.vector_norm(e, dim=1).mean() / e.shape[1] ** 0.5 for e in encoding.errors.values()]
        return torch.stack(roots).mean()
    return torch.stack([error.square().mean() for error in encoding.errors.values()]).mean()


def sparsity_penalty(crosscoder: Crosscoder, encoding: Encoding, recipe: SparsityRecipe, progress: float) -> Tensor:
    """Penalty of the dense families after a share `progress` of the steps.

    `l1`: activation times decoder norm (Lindsey et al. 2024). `jumprelu`: tanh of it, and a small pull on features
    below their threshold so that none is lost (January 2025 update).
    """
    risen = progress / recipe.coefficient_warmup if recipe.coefficient_warmup else 1.0
    coefficient = recipe.coefficient * min(1.0, risen)
    coordinates = sum(crosscoder.widths[source] for source in crosscoder.targets)
    terms = []
    for group in crosscoder.groups:
        codes = encoding.codes[group.name]
        assert isinstance(codes, Dense), "penalties belong to the dense families"
        norm = _penalty_norm(crosscoder, group, recipe)
        weighted = codes.value * norm
        if recipe.kind == "l1":
            term = weighted.sum(dim=1).mean() * coefficient
        else:
            assert codes.threshold is not None, "JumpReLU has thresholds"
            below = (codes.threshold - codes.pre).relu()
            term = torch.tanh(recipe.tanh_scale * weighted).sum(dim=1).mean() * coefficient
            term = term + recipe.pre_activation_weight * (below * norm).sum(dim=1).mean()
        terms.append(term * group.penalty)
    return torch.stack(terms).sum() / coordinates


FEWEST = 16
"""Dead features are looked at so many at a time, or a quarter to an eighth of all where that is more."""


def dead_features_loss(crosscoder: Crosscoder, done: Encoding, dead: dict[str, Tensor], k: int) -> Tensor | None:
    """AuxK (Gao et al. 2024): dead features reconstruct what the living ones left, through the same blocks.

    Returns the error left as a share of the target's, or None when no group has dead features. The target
    is detached: the living features must not learn from it. The decoder bias is not added, it is in the error already.
    """
    parts: dict[str, list[Tensor]] = {source: [] for source in crosscoder.targets}
    for group in crosscoder.groups:
        index = dead[group.name]
        if not len(index):
            continue
        pre = _pre_of(crosscoder, group, index, done.inputs(group))
        kept = torch.topk(pre, min(k, pre.shape[1]), dim=1, sorted=False)
        active = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
        for source in group.writes:
            weight = _rounded_up(chosen_rows(crosscoder.weights[f"decoder.{source}.{group.name}"], index))
            parts[source].append(active @ weight.to(active.dtype))
    losses = []
    for source, contributions in parts.items():
        if contributions:
            target = done.errors[source].detach()
            guess = torch.stack(contributions).sum(dim=0).float()
            losses.append((target - guess).square().mean() / target.square().mean().clamp_min(1e-9))
    return torch.stack(losses).mean() if losses else None


def _penalty_norm(crosscoder: Crosscoder, group: Group, recipe: SparsityRecipe) -> Tensor:
    """Decoder norm of every feature in the penalty [F], with gradient."""
    squares = [crosscoder.weights[f"decoder.{source}.{group.name}"].square().sum(dim=1) for source in group.writes]
    if recipe.penalty_norm == "concatenation":
        return torch.stack(squares).sum(dim=0).clamp_min(1e-12).sqrt()
    return torch.stack(squares).clamp_min(1e-12).sqrt().sum(dim=0)


def _pre_of(crosscoder: Crosscoder, group: Group, index: Tensor, inputs: Tensor) -> Tensor:
    """Pre-activations of some features of a group and of zeros up to a round number, with gradient."""
    weight = torch.cat(
        [chosen_rows(crosscoder.weights[f"encoder.{source}.{group.name}"], index) for source in group.reads], dim=1
    )
    bias = chosen_rows(crosscoder.weights[f"encoder_bias.{group.name}"], index)
    return torch.nn.functional.linear(inputs, _rounded_up(weight).to(inputs.dtype), _rounded_up(bias).to(inputs.dtype))


def _rounded_up(rows: Tensor) -> Tensor:
    """Rows [n, ...] and as many zeros as make a round number.

    Features of zeros are never active. Without them nearly every step would multiply matrices of another shape, and
    oneDNN keeps more than a megabyte of machine code for each shape that it has seen.
    """
    step = max(FEWEST, 1 << len(rows).bit_length() >> 3)
    missing = -len(rows) % step
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
