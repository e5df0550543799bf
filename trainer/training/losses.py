"""Reconstruction loss, sparsity penalty and dead features' loss of a training step.

Errors are averaged over coordinates, so that with normalised rows a loss of 1 means that nothing is explained.
Penalties are divided by the number of coordinates, so that coefficients have the literature's units, in which the
squared error is summed over coordinates. Axes: R rows, F features of a group, W width of a source.
"""

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.recipe.fitting import SparsityRecipe
from trainer.training.encoding import DenseCodes, Encoding
from trainer.training.gradients import select_rows


def reconstruction_loss(encoding: Encoding, kind: str | None = None) -> Tensor:
    """Mean squared error per coordinate, averaged over targets; for `norm`, the mean over rows of its root."""
    if kind == "norm":
        roots = [torch.linalg.vector_norm(e, dim=1).mean() / e.shape[1] ** 0.5 for e in encoding.errors.values()]
        return torch.stack(roots).mean()
    return torch.stack([error.square().mean() for error in encoding.errors.values()]).mean()


def sparsity_penalty(crosscoder: Crosscoder, encoding: Encoding, recipe: SparsityRecipe, progress: float) -> Tensor:
    """Sparsity penalty of the dense kinds after a share `progress` of the steps.

    `l1`: activation times decoder norm (Lindsey et al. 2024). `jumprelu`: tanh of it, and a small pre-activation loss
    below the threshold, which keeps features alive (January 2025 update).
    """
    warmup = progress / recipe.coefficient_warmup if recipe.coefficient_warmup else 1.0
    coefficient = recipe.coefficient * min(1.0, warmup)
    coordinates = sum(crosscoder.widths[source] for source in crosscoder.targets)
    terms = []
    for group in crosscoder.groups:
        codes = encoding.codes[group.name]
        assert isinstance(codes, DenseCodes), "only the dense kinds have a penalty"
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


MIN_PADDING_MULTIPLE = 16
"""Dead features are padded to a multiple of this, or of an eighth to a quarter of their number if that is more."""


def dead_features_loss(crosscoder: Crosscoder, encoding: Encoding, dead: dict[str, Tensor], k: int) -> Tensor | None:
    """AuxK (Gao et al. 2024): the k strongest dead features per row and group reconstruct the error of the others.

    `dead` has the indices of each group's dead features. Returns the squared error as a share of the target's, or None
    when no group has dead features. The target is detached, because the other features must not learn from this loss.
    The decoder bias is not added: the error contains it already.
    """
    parts: dict[str, list[Tensor]] = {source: [] for source in crosscoder.targets}
    for group in crosscoder.groups:
        index = dead[group.name]
        if not len(index):
            continue
        pre = _dead_pre_activations(crosscoder, group, index, encoding.inputs(group))
        kept = torch.topk(pre, min(k, pre.shape[1]), dim=1, sorted=False)
        active = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
        for source in group.writes:
            weight = _pad_rows(select_rows(crosscoder.weights[f"decoder.{source}.{group.name}"], index))
            parts[source].append(active @ weight.to(active.dtype))
    losses = []
    for source, contributions in parts.items():
        if contributions:
            target = encoding.errors[source].detach()
            reconstruction = torch.stack(contributions).sum(dim=0).float()
            losses.append((target - reconstruction).square().mean() / target.square().mean().clamp_min(1e-9))
    return torch.stack(losses).mean() if losses else None


def _penalty_norm(crosscoder: Crosscoder, group: Group, recipe: SparsityRecipe) -> Tensor:
    """Decoder norm of every feature as the penalty weighs it [F], with gradient."""
    squares = [crosscoder.weights[f"decoder.{source}.{group.name}"].square().sum(dim=1) for source in group.writes]
    if recipe.penalty_norm == "concatenation":
        return torch.stack(squares).sum(dim=0).clamp_min(1e-12).sqrt()
    return torch.stack(squares).clamp_min(1e-12).sqrt().sum(dim=0)


def _dead_pre_activations(crosscoder: Crosscoder, group: Group, index: Tensor, inputs: Tensor) -> Tensor:
    """Pre-activations of the features at `index`, padded as in `_pad_rows` [R, n], with gradient."""
    weight = torch.cat(
        [select_rows(crosscoder.weights[f"encoder.{source}.{group.name}"], index) for source in group.reads], dim=1
    )
    bias = select_rows(crosscoder.weights[f"encoder_bias.{group.name}"], index)
    return torch.nn.functional.linear(inputs, _pad_rows(weight).to(inputs.dtype), _pad_rows(bias).to(inputs.dtype))


def _pad_rows(rows: Tensor) -> Tensor:
    """Pad rows [n, ...] with zeros, so that n takes few values.

    Padded features are never active. Without padding nearly every step would multiply matrices of a new shape, and
    oneDNN caches more than a megabyte of machine code for each shape.
    """
    step = max(MIN_PADDING_MULTIPLE, 1 << len(rows).bit_length() >> 3)
    missing = -len(rows) % step
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
