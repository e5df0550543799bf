"""The gradients that are written out, against what autograd makes of the dense definition."""

import pytest
import torch

from tests.worlds.slow_gradients import slow_gradients
from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.kernels import cpu, sparse
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.gradients import write_gradients
from trainer.training.losses import reconstruction_loss
from trainer.training.trainer import Training


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize(
    "crosscoder",
    [
        {"variant": "dfc"},
        {"variant": "standard", "aggregation": "mean"},
        {"variant": "designated_shared"},
        {"variant": "dfc", "loss": "norm"},
    ],
)
def test_written_gradients_equal_those_of_the_dense_definition(tmp_path, monkeypatch, crosscoder, way):
    monkeypatch.setattr(cpu, "AVAILABLE", way == "compiled")
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(sparse, "SHARED_BY", 0)
    training = Training(
        tiny_recipe(crosscoder=crosscoder, training={"precision": "float32"}), tiny_activations(tmp_path / "store")
    )
    fitted, sparsity = training.crosscoder, training.recipe.crosscoder.sparsity
    for weight in fitted.weights.values():  # nothing tied to its start: biases at zero would hide a wrong factor
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    rows = fitted.normalise(next(iter(training.batches_left())))
    keep = budgets(fitted, sparsity, 3 * len(rows["left"]))
    done = encode_sparse(fitted, rows, sparsity, keep, training.guess, training.encoders)

    write_gradients(fitted, rows, done, crosscoder.get("loss"))

    loss, expected = slow_gradients(fitted, rows, done, crosscoder.get("loss"))
    torch.testing.assert_close(reconstruction_loss(done, crosscoder.get("loss")), loss.detach())
    for name, weight in fitted.weights.items():
        assert float(weight.grad.abs().max()) > 0
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)
