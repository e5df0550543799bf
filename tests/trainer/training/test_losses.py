"""The loss that trains dead features."""

import pytest
import torch

from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.losses import dead_features_loss
from trainer.training.trainer import Training

DEAD = 5
"""A feature of the shared group that is dead in these tests."""


def training_with_a_dead_feature(tmp_path, **dead_features) -> Training:
    """A training with one feature that is too weak to be selected and has not fired for 400 rows."""
    recipe = tiny_recipe(crosscoder={"dead_features": {"after_rows": 400, "k": 4} | dead_features})
    training = Training(recipe, tiny_activations(tmp_path / "store"))
    with torch.no_grad():
        for source in WIDTHS:
            training.crosscoder.weights[f"encoder.{source}.shared"][DEAD] *= 1e-3
    training.rows_since_fired[DEAD] = 400
    return training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_updates_the_encoder_and_decoder_of_a_dead_feature(tmp_path, precision):
    training = training_with_a_dead_feature(tmp_path)
    training.encoder = type(training.encoder)(training.crosscoder, getattr(torch, precision))
    names = [f"{kind}.{source}.shared" for kind in ("encoder", "decoder") for source in WIDTHS]
    before = {name: training.crosscoder.weights[name].detach()[DEAD].clone() for name in names}

    training.run_step(next(iter(training.remaining_batches())))

    assert training.rows_since_fired[DEAD] == 464, "it did not fire in this step either"
    for name in names:
        assert (training.crosscoder.weights[name].detach()[DEAD] - before[name]).abs().min() > 0, name


def test_without_its_loss_a_dead_feature_is_not_updated(tmp_path):
    training = training_with_a_dead_feature(tmp_path, weight=0)
    before = training.crosscoder.weights["encoder.left.shared"].detach()[DEAD].clone()

    training.run_step(next(iter(training.remaining_batches())))

    assert torch.equal(training.crosscoder.weights["encoder.left.shared"].detach()[DEAD], before)


def test_the_dead_features_loss_equals_its_dense_definition_with_every_bias_counted_once(tmp_path):
    training = training_with_a_dead_feature(tmp_path)
    crosscoder = training.crosscoder
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in [name for name in crosscoder.weights if "bias" in name]:
            crosscoder.weights[name] += torch.randn(crosscoder.weights[name].shape, generator=generator)
    training.encoder = type(training.encoder)(crosscoder, torch.float32)
    rows = crosscoder.normalise(next(iter(training.remaining_batches())))
    sparsity = training.recipe.crosscoder.sparsity
    done = encode_sparse(
        crosscoder, rows, sparsity, budgets(crosscoder, sparsity, 64 * 3), training.guess, training.encoder
    )
    dead = {"shared": torch.tensor([3, DEAD]), "left": torch.tensor([0]), "right": torch.tensor([], dtype=torch.int64)}

    found = dead_features_loss(crosscoder, done, dead, k=4)

    # Reference in double precision, feature by feature: the error of all sources' other features and biases, against
    # the reconstruction by the dead ones without any decoder bias.
    w = {name: weight.detach().double() for name, weight in crosscoder.weights.items()}
    x = {source: values.double() for source, values in rows.items()}
    shares = []
    for source in WIDTHS:
        left = done.errors[source].detach().double()
        guess = torch.zeros_like(left)
        for group in crosscoder.groups:
            for feature in dead[group.name].tolist() if source in group.writes else []:
                pre = w[f"encoder_bias.{group.name}"][feature]
                pre = pre + sum(x[s] @ w[f"encoder.{s}.{group.name}"][feature] for s in group.reads)
                guess += pre.relu()[:, None] * w[f"decoder.{source}.{group.name}"][feature]
        shares.append((left - guess).square().mean() / left.square().mean())
    assert found is not None
    torch.testing.assert_close(found.detach().double(), torch.stack(shares).mean(), rtol=1e-5, atol=0)


def test_silence_is_counted_in_rows_not_in_steps(tmp_path):
    training = training_with_a_dead_feature(tmp_path)
    training.rows_since_fired[:] = 0
    batches = training.remaining_batches()

    for _ in range(3):
        training.run_step(next(batches))

    assert training.rows_since_fired[DEAD] == 3 * 64
    assert int(training.rows_since_fired.min()) == 0, "features that fired are counted from zero again"
