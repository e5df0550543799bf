"""Kernels: the products of a crosscoder that touch only active entries.

Only the encoder product is dense. Decoding, the gradient of the activations and the gradients of both weights
need just the (row, feature) pairs that are active: `rows * k` of `rows * features`. `Pattern` holds these
pairs in row order and in feature order, so that every sum runs over contiguous entries. The sums are in fp32:
casting the weights would cost more than it saves.

Axes: R rows, F features of one group, W width of one source, N active pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pattern:
    """Which features of one group are active on which rows of a batch."""

    def __init__(self, row: Tensor, feature: Tensor, *, rows: int, features: int) -> None:
        """Pairs in row order: row int64 [N] (not decreasing), feature int64 [N]."""
        self.row, self.feature = row, feature
        self.rows, self.features = rows, features
        self.row_offsets = _offsets(row, rows)
        self.by_feature = torch.argsort(feature, stable=True)
        self.row_by_feature = row[self.by_feature]
        self.feature_offsets = _offsets(feature[self.by_feature], features)

    def __len__(self) -> int:
        return self.row.numel()


def _offsets(keys: Tensor, count: int) -> Tensor:
    """Where each key's run begins in sorted keys, and their number at the end int64 [count + 1]."""
    return torch.searchsorted(keys, torch.arange(count + 1, device=keys.device))


def sum_by_row(pattern: Pattern, value: Tensor, vectors: Tensor) -> Tensor:
    """For each row, its active features' vectors [F, W] weighted by value [N]; gives [R, W]."""
    return _weighted_sum(pattern.feature, pattern.row_offsets, value, vectors)


def sum_by_feature(pattern: Pattern, value: Tensor, vectors: Tensor) -> Tensor:
    """For each feature, the vectors [R, W] of rows where it is active weighted by value [N]; gives [F, W]."""
    return _weighted_sum(pattern.row_by_feature, pattern.feature_offsets, value[pattern.by_feature], vectors)


def _weighted_sum(index: Tensor, offsets: Tensor, weight: Tensor, vectors: Tensor) -> Tensor:
    if not index.numel():
        return vectors.new_zeros(offsets.numel() - 1, vectors.shape[1])
    return torch.nn.functional.embedding_bag(
        index, vectors, offsets, mode="sum", per_sample_weights=weight.to(vectors.dtype), include_last_offset=True
    )


def products(pattern: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """Inner product of left [R, W] and right [F, W] for every active pair; gives [N].

    This is how embedding_bag differentiates its per-sample weights, and nothing else in torch is as fast at it on
    a CPU (12 times faster than gathering both sides).
    """
    if not len(pattern):
        return left.new_zeros(0)
    found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001
        left.contiguous(), right, pattern.feature, pattern.row_offsets[:-1], pattern.row, 0
    )
    return found


class _EncodeActive(torch.autograd.Function):
    """Pre-activations at active pairs, taken from the dense product; its gradients touch those pairs alone."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, pattern: Pattern, bias: Tensor, *inputs_and_weights: Tensor) -> Tensor:  # noqa: ARG004
        ctx.pattern = pattern
        ctx.save_for_backward(*inputs_and_weights[: len(inputs_and_weights) // 2])
        return pre.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bias = grad.new_zeros(ctx.pattern.features).index_add_(0, ctx.pattern.feature, grad)
        weights = [sum_by_feature(ctx.pattern, grad, inputs) for inputs in ctx.saved_tensors]
        return (None, None, bias, *([None] * len(weights)), *weights)


def encode_active(pre: Tensor, pattern: Pattern, bias: Tensor, inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Attach gradients to pre-activations pre [N] already computed by the dense encoder product.

    pre = bias[feature] + sum over sources of inputs[row] . weights[feature]; inputs [R, W] carry no gradient,
    weights [F, W] and bias [F] do. Inputs have the weights' dtype.
    """
    return _EncodeActive.apply(pre, pattern, bias, *inputs, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _DecodeActive(torch.autograd.Function):
    """Sum of active decoder directions per row; both gradients touch active pairs alone."""

    @staticmethod
    def forward(ctx: Any, pattern: Pattern, value: Tensor, weight: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(value, weight)
        return sum_by_row(pattern, value, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, weight = ctx.saved_tensors
        return None, products(ctx.pattern, grad, weight), sum_by_feature(ctx.pattern, value, grad)


def decode_active(pattern: Pattern, value: Tensor, weight: Tensor) -> Tensor:
    """Sum over active features of value [N] times weight [F, W]; gives [R, W]."""
    return _DecodeActive.apply(pattern, value, weight)  # type: ignore[no-any-return, no-untyped-call]
