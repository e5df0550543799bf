"""ReLU with a learned threshold and straight-through gradients for it.

Rajamanoharan et al. 2024 (arXiv 2407.14435): x where it is above the threshold, else 0. The threshold receives gradient
from inputs within half a bandwidth of it. Thresholds and their gradients stay in fp32 whatever the precision of the
products: in bf16 they silently stop learning.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log_threshold: Tensor, bandwidth: float) -> Tensor:
        threshold = log_threshold.exp()
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, threshold = ctx.saved_tensors
        near = ((x - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        to_threshold = (-threshold / ctx.bandwidth * near * grad).sum(dim=0) * threshold
        return grad * (x > threshold), to_threshold, None


def jumprelu(x: Tensor, log_threshold: Tensor, bandwidth: float) -> Tensor:
    """Pre-activations [R, F] where above exp(log_threshold) [F], else zero; both fp32."""
    return _JumpReLU.apply(x, log_threshold, bandwidth)  # type: ignore[no-any-return, no-untyped-call]
