"""Reference loss and gradients of an encoded batch, by autograd on the dense definition."""

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, Rows
from trainer.training.encoding import Encoding


def slow_gradients(
    fitted: Crosscoder, rows: Rows, done: Encoding, kind: str | None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of every weight, when the same entries are active; weights become `dtype` first."""
    weights = {id(weight): weight.detach().to(dtype).requires_grad_() for weight in fitted.weights.values()}
    dense = {name: weights[id(weight)] for name, weight in fitted.weights.items()}
    rows = {source: x.to(dtype) for source, x in rows.items()}
    rebuilt = {target: dense[f"decoder_bias.{target}"] for target in fitted.targets}
    for group in fitted.groups:
        pattern = done.codes[group.name].pattern
        mask = torch.zeros(pattern.rows, pattern.features, dtype=dtype, device=fitted.device)
        mask[pattern.row, pattern.feature] = 1
        read = sum(rows[source] @ dense[f"encoder.{source}.{group.name}"].T for source in group.reads)
        active = (read * fitted.read_factor(group) + dense[f"encoder_bias.{group.name}"]) * mask
        for target in group.writes:
            rebuilt[target] = rebuilt[target] + active @ dense[f"decoder.{target}.{group.name}"]
    squares = [(rows[t] - rebuilt[t]).square().mean(dim=1) for t in fitted.targets]
    each = [rows_of.sqrt() for rows_of in squares] if kind == "norm" else squares
    loss = torch.stack([rows_of.mean() for rows_of in each]).mean()
    return loss, dict(zip(dense, torch.autograd.grad(loss, list(dense.values())), strict=True))
