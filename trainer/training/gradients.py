"""Gradients of the families that keep k features, written out: every term runs over active pairs alone.

With error e_t = x_t - y_t of target t, loss = mean over targets of mean e_t^2, and an active pair (r, f):

    d loss / d y_t         = c_t e_t,                       c_t = -2 / (R W_t targets)
    d loss / d W_dec[f, t] = sum over r of value[r, f] c_t e_t[r]
    d loss / d pre[r, f]   = sum over t of c_t e_t[r] . W_dec[f, t]
    d loss / d W_enc[f, s] = sum over r of d pre[r, f] x_s[r],    d loss / d b[f] = sum over r of d pre[r, f]

Where the loss is the mean of |e_t| / sqrt(W_t), c_t e_t becomes c_t e_t sqrt(W_t) / (2 |e_t|).

Axes: R rows, F features of a group, W width of a source, N active pairs.
"""

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, Rows
from trainer.crosscoder.groups import Group
from trainer.kernels import cpu, gpu
from trainer.kernels.sparse import products, sum_by_feature
from trainer.training.encoding import Encoding, Sparse


@torch.no_grad()
def write_gradients(crosscoder: Crosscoder, rows: Rows, done: Encoding, kind: str | None = None) -> None:
    """Replace the gradient of every weight by that of the reconstruction loss of an encoded batch.

    Room for gradients is taken once and written again in every step: fresh memory costs as much as the sums.
    """
    errors = {t: _of_unit_pull(error) for t, error in done.errors.items()} if kind == "norm" else done.errors
    share = {t: -2.0 / (error.numel() * len(errors)) for t, error in errors.items()}
    for target, error in errors.items():
        _room(crosscoder.weights[f"decoder_bias.{target}"]).copy_(error.sum(dim=0) * share[target])
    for group in crosscoder.groups:
        codes = done.codes[group.name]
        assert isinstance(codes, Sparse), "the dense families leave this to autograd"
        decoders, encoders = _blocks(crosscoder, group, rows, errors, share)
        bias = _room(crosscoder.weights[f"encoder_bias.{group.name}"])
        pattern = codes.pattern
        tied = len({id(block.weight) for block in decoders}) < len(decoders)
        read = (codes.value, *(x for block in (*decoders, *encoders) for x in (block.beside, block.weight)))
        if gpu.usable(*read) and all(block.beside.shape[1] <= gpu.WIDEST for block in decoders):
            gpu.write_gradients(pattern.feature_runs, codes.value[pattern.by_feature], decoders, encoders, bias)
        elif not tied and cpu.usable(*read):
            cpu.write_gradients(pattern.pairs(codes.value), decoders, encoders, bias)
        else:
            _write(codes, decoders, encoders, bias)


def _blocks(
    crosscoder: Crosscoder, group: Group, rows: Rows, errors: Rows, share: dict[str, float]
) -> tuple[list[cpu.WeightBlock], list[cpu.WeightBlock]]:
    """A group's decoders by target and encoders by source."""
    weights, factor = crosscoder.weights, crosscoder.read_factor(group)
    decoders = [(errors[target], share[target], weights[f"decoder.{target}.{group.name}"]) for target in group.writes]
    encoders = [(rows[source], factor, weights[f"encoder.{source}.{group.name}"]) for source in group.reads]
    down, up = (
        [cpu.WeightBlock(beside.contiguous(), scale, weight, _room(weight)) for beside, scale, weight in blocks]
        for blocks in (decoders, encoders)
    )
    return down, up


def _write(codes: Sparse, decoders: list[cpu.WeightBlock], encoders: list[cpu.WeightBlock], bias: Tensor) -> None:
    """The gradients of a group matrix by matrix."""
    pattern, pull = codes.pattern, torch.zeros_like(codes.value)
    for block in decoders:
        pull += block.factor * products(pattern, block.beside, block.weight.detach())
        block.gradient.zero_()
    for block in decoders:  # a tied decoder stands for several targets
        block.gradient.add_(sum_by_feature(pattern, codes.value * block.factor, block.beside))
    bias.zero_().index_add_(0, pattern.feature, pull)
    for block in encoders:
        block.gradient.copy_(sum_by_feature(pattern, pull * block.factor, block.beside))


def _of_unit_pull(error: Tensor) -> Tensor:
    """Errors [R, W], every row as long as makes the gradient of its square that of its length per sqrt(W)."""
    length = torch.linalg.vector_norm(error, dim=1, keepdim=True).clamp_min(1e-12)
    pulling: Tensor = error * (error.shape[1] ** 0.5 / (2 * length))
    return pulling


def _room(weight: Tensor) -> Tensor:
    """Where a weight's gradient goes."""
    if weight.grad is None:
        weight.grad = torch.empty_like(weight)
    return weight.grad


class _Chosen(torch.autograd.Function):
    """Some rows of a weight; their gradient is added to the weight's own in place, without a matrix of zeros."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, index: Tensor) -> Tensor:
        ctx.weight, ctx.index = weight, index  # type: ignore[attr-defined]
        return weight.detach().index_select(0, index)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[None, None]:
        weight: Tensor = ctx.weight  # type: ignore[attr-defined]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ctx.index, grads[0])  # type: ignore[attr-defined]
        return None, None


def chosen_rows(weight: Tensor, index: Tensor) -> Tensor:
    """Rows of a weight [n, ...] whose gradient reaches `weight.grad` when a loss of them is differentiated backward."""
    rows: Tensor = _Chosen.apply(weight, index)  # type: ignore[no-untyped-call]
    return rows
