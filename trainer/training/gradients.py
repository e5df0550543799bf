"""Explicit gradients for the sparse kinds; every term is a sum over active pairs alone.

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
from trainer.kernels.sparse import inner_products, sum_by_feature
from trainer.training.encoding import Encoding, SparseCodes


@torch.no_grad()
def write_gradients(crosscoder: Crosscoder, rows: Rows, encoding: Encoding, kind: str | None = None) -> None:
    """Overwrite the gradient of every weight with that of the reconstruction loss of an encoded batch.

    `kind` is the recipe's loss, as in `reconstruction_loss`. Gradients reuse the same memory in every step: allocating
    it would take as long as the sums.
    """
    errors = {t: _scale_for_norm_loss(e) for t, e in encoding.errors.items()} if kind == "norm" else encoding.errors
    share = {t: -2.0 / (error.numel() * len(errors)) for t, error in errors.items()}
    for target, error in errors.items():
        _gradient_buffer(crosscoder.weights[f"decoder_bias.{target}"]).copy_(error.sum(dim=0) * share[target])
    for group in crosscoder.groups:
        codes = encoding.codes[group.name]
        assert isinstance(codes, SparseCodes), "the dense kinds use autograd"
        decoders, encoders = _weight_blocks(crosscoder, group, rows, errors, share)
        bias = _gradient_buffer(crosscoder.weights[f"encoder_bias.{group.name}"])
        pattern = codes.pattern
        tied = len({id(block.weight) for block in decoders}) < len(decoders)
        read = (codes.value, *(x for block in (*decoders, *encoders) for x in (block.vectors, block.weight)))
        if gpu.usable(*read) and all(block.vectors.shape[1] <= gpu.MAX_WIDTH for block in decoders):
            gpu.write_gradients(pattern.feature_segments, codes.value[pattern.by_feature], decoders, encoders, bias)
        elif not tied and cpu.usable(*read):
            cpu.write_gradients(pattern.pairs(codes.value), decoders, encoders, bias)
        else:
            _write_with_torch(codes, decoders, encoders, bias)


def _weight_blocks(
    crosscoder: Crosscoder, group: Group, rows: Rows, errors: Rows, share: dict[str, float]
) -> tuple[list[cpu.WeightBlock], list[cpu.WeightBlock]]:
    """A group's decoders by target and encoders by source."""
    weights, factor = crosscoder.weights, crosscoder.read_factor(group)
    decoders = [(errors[target], share[target], weights[f"decoder.{target}.{group.name}"]) for target in group.writes]
    encoders = [(rows[source], factor, weights[f"encoder.{source}.{group.name}"]) for source in group.reads]
    decoder_blocks, encoder_blocks = (
        [
            cpu.WeightBlock(vectors.contiguous(), scale, weight, _gradient_buffer(weight))
            for vectors, scale, weight in blocks
        ]
        for blocks in (decoders, encoders)
    )
    return decoder_blocks, encoder_blocks


def _write_with_torch(
    codes: SparseCodes, decoders: list[cpu.WeightBlock], encoders: list[cpu.WeightBlock], bias: Tensor
) -> None:
    """Gradients of a group's weights and bias by torch's own operations."""
    pattern, pre_gradient = codes.pattern, torch.zeros_like(codes.value)
    for block in decoders:
        pre_gradient += block.factor * inner_products(pattern, block.vectors, block.weight.detach())
        block.gradient.zero_()
    for block in decoders:  # adds up: a tied decoder is in several blocks
        block.gradient.add_(sum_by_feature(pattern, codes.value * block.factor, block.vectors))
    bias.zero_().index_add_(0, pattern.feature, pre_gradient)
    for block in encoders:
        block.gradient.copy_(sum_by_feature(pattern, pre_gradient * block.factor, block.vectors))


def _scale_for_norm_loss(error: Tensor) -> Tensor:
    """Scales rows [R, W] by √W/(2‖e‖), so that the squared loss's backward gives the norm loss's gradient."""
    length = torch.linalg.vector_norm(error, dim=1, keepdim=True).clamp_min(1e-12)
    scaled: Tensor = error * (error.shape[1] ** 0.5 / (2 * length))
    return scaled


def _gradient_buffer(weight: Tensor) -> Tensor:
    """The weight's gradient tensor, allocated at first use."""
    if weight.grad is None:
        weight.grad = torch.empty_like(weight)
    return weight.grad


class _SelectRows(torch.autograd.Function):
    """Index-select rows of a weight; backward adds to `weight.grad` in place, without a dense gradient."""

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


def select_rows(weight: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of a weight [n, ...]; backward adds their gradient to `weight.grad`."""
    rows: Tensor = _SelectRows.apply(weight, index)  # type: ignore[no-untyped-call]
    return rows
