"""Defects found in other trainers, each shown to be absent here."""

import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.forked import fork
from tests.worlds.tiny_activations import WIDTHS, tiny_activations, tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.training import checkpoint as checkpoint_module
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.losses import dead_features_loss
from trainer.training.stage import train
from trainer.training.trainer import Training

DEAD = 5
"""A feature of the shared group that the tests below let die."""


def dying(tmp_path, **dead_features) -> Training:
    """A training in which one feature is too weak to be kept, and has been silent for long."""
    recipe = tiny_recipe(crosscoder={"dead_features": {"after_rows": 400, "k": 4} | dead_features})
    training = Training(recipe, tiny_activations(tmp_path / "store"))
    with torch.no_grad():
        for source in WIDTHS:
            training.crosscoder.weights[f"encoder.{source}.shared"][DEAD] *= 1e-3
    training.rows_since_fired[DEAD] = 400
    return training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_moves_the_encoder_and_decoder_of_a_dead_feature(tmp_path, precision):
    training = dying(tmp_path)
    training.encoders = type(training.encoders)(training.crosscoder, getattr(torch, precision))
    names = [f"{kind}.{source}.shared" for kind in ("encoder", "decoder") for source in WIDTHS]
    before = {name: training.crosscoder.weights[name].detach()[DEAD].clone() for name in names}

    training.run_step(next(iter(training.batches_left())))

    assert training.rows_since_fired[DEAD] == 464, "it did not fire in this step either"
    for name in names:
        assert (training.crosscoder.weights[name].detach()[DEAD] - before[name]).abs().min() > 0, name


def test_without_its_loss_a_dead_feature_does_not_move(tmp_path):
    training = dying(tmp_path, weight=0)
    before = training.crosscoder.weights["encoder.left.shared"].detach()[DEAD].clone()

    training.run_step(next(iter(training.batches_left())))

    assert torch.equal(training.crosscoder.weights["encoder.left.shared"].detach()[DEAD], before)


def test_dead_features_are_asked_for_what_is_left_with_every_bias_counted_once(tmp_path):
    training = dying(tmp_path)
    crosscoder = training.crosscoder
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in [name for name in crosscoder.weights if "bias" in name]:
            crosscoder.weights[name] += torch.randn(crosscoder.weights[name].shape, generator=generator)
    training.encoders = type(training.encoders)(crosscoder, torch.float32)
    rows = crosscoder.normalise(next(iter(training.batches_left())))
    sparsity = training.recipe.crosscoder.sparsity
    done = encode_sparse(
        crosscoder, rows, sparsity, budgets(crosscoder, sparsity, 64 * 3), training.guess, training.encoders
    )
    dead = {"shared": torch.tensor([3, DEAD]), "left": torch.tensor([0]), "right": torch.tensor([], dtype=torch.int64)}

    found = dead_features_loss(crosscoder, done, dead, k=4)

    # Feature by feature in double precision: what all sources' living features and biases leave, against what the
    # dead ones give without any decoder bias.
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


def test_a_feature_is_dead_by_the_rows_it_was_silent_for_not_by_steps(tmp_path):
    training = dying(tmp_path)
    training.rows_since_fired[:] = 0
    batches = training.batches_left()

    for _ in range(3):
        training.run_step(next(batches))

    assert training.rows_since_fired[DEAD] == 3 * 64
    assert int(training.rows_since_fired.min()) == 0, "features that fired begin anew"


def test_every_step_encodes_with_the_weights_of_now_not_with_a_copy_of_before(tmp_path):
    training = Training(tiny_recipe(), tiny_activations(tmp_path / "store"))
    batch = next(iter(training.batches_left()))
    training.run_step(batch)
    crosscoder, sparsity = training.crosscoder, training.recipe.crosscoder.sparsity
    training.encoders = type(training.encoders)(crosscoder, torch.float32)
    rows = crosscoder.normalise(batch)
    keep = budgets(crosscoder, sparsity, 64 * 3)
    encode_sparse(crosscoder, rows, sparsity, keep, training.guess, training.encoders)
    with torch.no_grad():
        for source in WIDTHS:
            crosscoder.weights[f"encoder.{source}.shared"] += 0.5

    done = encode_sparse(crosscoder, rows, sparsity, keep, training.guess, training.encoders)

    group = crosscoder.groups[0]
    scores = crosscoder.pre_activations(group, rows) * crosscoder.scale_of(group)
    share = keep[0][1]
    best = set(torch.topk(scores.detach().flatten(), share).indices.tolist())
    pattern = done.codes["shared"].pattern
    kept = set((pattern.row * group.features + pattern.feature).tolist())
    assert len(best) == len(kept) == share
    assert len(best & kept) >= share - 1, "one place may be tied"


def test_a_saved_crosscoder_has_the_thresholds_that_give_the_k_of_training(tmp_path):
    store, folder = tiny_activations(tmp_path / "store"), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)

    assert all(0 < float(value) < math.inf for value in loaded.threshold.values())
    (block,) = store.blocks("held_out")
    codes = loaded.encode(block.rows)
    assert len(codes.row) / codes.rows == pytest.approx(3, abs=0.3)


def test_without_held_out_rows_the_moving_average_of_training_becomes_the_threshold(tmp_path):
    store, folder = tiny_activations(tmp_path / "store", held_out=0), RunFolder(tmp_path / "run")
    folder.path.mkdir()

    train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)
    rows = next(store.blocks("train")).rows
    codes = loaded.encode(rows)
    assert all(float(value) > 0 for value in loaded.threshold.values())
    assert len(codes.row) / codes.rows == pytest.approx(3, abs=0.3)


def test_scales_and_means_of_the_sources_are_saved_and_applied_on_the_way_in_and_out(tmp_path):
    """The right source is forty times as large as the left and stands a hundred away from zero."""
    store, folder = tiny_activations(tmp_path / "store", rows=12_288), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    train(tiny_recipe(training={"epochs": 6}), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)

    assert loaded.normaliser["left"].scale > 30 * loaded.normaliser["right"].scale
    assert float(loaded.normaliser["right"].mean.mean()) == pytest.approx(100, abs=5)
    (block,) = store.blocks("held_out")
    rebuilt = loaded.decode(loaded.encode(block.rows))
    for source, truth in block.rows.items():
        error = (rebuilt[source] - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum()
        assert error < 0.3, source


def test_jumprelu_thresholds_go_on_learning_where_products_run_in_bfloat16(tmp_path):
    """Steps of 1e-4 are lost on a bfloat16 number near -2.3, whose neighbours are 0.0156 away."""
    recipe = tiny_recipe(
        crosscoder={"sparsity": {"kind": "jumprelu", "coefficient": 0.3, "bandwidth": 0.5}},
        training={"precision": "bfloat16", "learning_rate": 1e-4, "epochs": 1},
    )
    training = Training(recipe, tiny_activations(tmp_path / "store"))
    before = {name: value.detach().clone() for name, value in training.log_thresholds.items()}

    for rows in training.batches_left():
        training.run_step(rows)
    training.calibrate()

    moved = torch.cat([(training.log_thresholds[name].detach() - start).abs() for name, start in before.items()])
    assert training.encoders.compute == torch.bfloat16
    assert float((moved > 0).float().mean()) > 0.9
    assert 1e-4 < float(moved.max()) < 0.0156
    for name, value in training.log_thresholds.items():
        torch.testing.assert_close(training.crosscoder.threshold[name], value.detach().exp(), rtol=0, atol=0)


@pytest.mark.parametrize("moment", ["half of the draft", "the whole draft", "before the old ones go"])
def test_a_kill_while_a_checkpoint_is_written_costs_nothing_but_the_steps_since_the_last(tmp_path, moment):
    store = tiny_activations(tmp_path / "store")

    def fit(path):
        folder = RunFolder(path)
        path.mkdir(exist_ok=True)
        train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    def fit_and_die(path):
        die_in_checkpoint(number=4, moment=moment)
        fit(path)

    fit(tmp_path / "whole")
    process = fork(fit_and_die, tmp_path / "killed")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    drafts = list((tmp_path / "killed" / "checkpoints").glob(".*.draft"))
    assert bool(drafts) == ("draft" in moment)

    fit(tmp_path / "killed")

    expected = load_file(tmp_path / "whole" / "crosscoder.safetensors")
    found = load_file(tmp_path / "killed" / "crosscoder.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list((tmp_path / "killed" / "checkpoints").glob(".*")) == []
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def die_in_checkpoint(*, number: int, moment: str) -> None:
    """From now on, this process is killed at a moment of the checkpoint of that number."""
    save, replace = checkpoint_module.save_file, checkpoint_module.Path.unlink
    count = iter(range(1, 1000))

    def save_and_die(tensors, path, metadata):
        save(tensors, path, metadata)
        if next(count) < number or moment == "before the old ones go":
            return
        if moment == "half of the draft":
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def unlink_or_die(self, **options):
        if self.name.startswith("step-"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, **options)

    checkpoint_module.save_file = save_and_die
    if moment == "before the old ones go":
        checkpoint_module.Path.unlink = unlink_or_die
