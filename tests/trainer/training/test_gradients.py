"""Explicit gradients equal those of autograd on the dense definition."""

import pytest
import torch

from tests.worlds.slow_gradients import slow_gradients
from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.kernels import cpu, sparse
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.gradients import write_gradients
from trainer.training.losses import reconstruction_loss
from trainer.training.trainer import Training


@pytest.mark.parametrize("backend", ["compiled", "torch"])
@pytest.mark.parametrize(
    "crosscoder",
    [
        {"variant": "dfc"},
        {"variant": "standard", "aggregation": "mean"},
        {"variant": "designated_shared"},
        {"variant": "dfc", "loss": "norm"},
    ],
)
def test_explicit_gradients_equal_those_of_the_dense_definition(tmp_path, monkeypatch, crosscoder, backend):
    monkeypatch.setattr(cpu, "available", lambda: backend == "compiled")
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(sparse, "MIN_ROWS_PER_VECTOR", 0)
    training = Training(
        tiny_recipe(crosscoder=crosscoder, training={"precision": "float32"}), tiny_activations(tmp_path / "store")
    )
    fitted, sparsity = training.crosscoder, training.recipe.crosscoder.sparsity
    for weight in fitted.weights.values():  # away from initial values: zero biases would hide a wrong factor
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    rows = fitted.normalise(next(iter(training.remaining_batches())))
    keep = budgets(fitted, sparsity, 3 * len(rows["left"]))
    encoding = encode_sparse(fitted, rows, sparsity, keep, training.guess, training.encoder)

    write_gradients(fitted, rows, encoding, crosscoder.get("loss"))

    loss, expected = slow_gradients(fitted, rows, encoding, crosscoder.get("loss"))
    torch.testing.assert_close(reconstruction_loss(encoding, crosscoder.get("loss")), loss.detach())
    for name, weight in fitted.weights.items():
        assert float(weight.grad.abs().max()) > 0
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)
