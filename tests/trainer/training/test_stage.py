"""Training learns, resumes exactly where it stopped, and avoids defects known from other trainers."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worlds.forked import fork
from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import StoreError
from trainer.evaluation.reconstruction import evaluate
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.batches import Batches
from trainer.training import trainer as training_module
from trainer.training.checkpoint import latest
from trainer.training.encoding import budgets, encode_sparse
from trainer.training.losses import dead_features_loss, reconstruction_loss
from trainer.training.stage import fingerprint_of, train
from trainer.training.trainer import Training


def encode(training: Training, rows):
    """One batch with a joint budget of three features per row."""
    sparsity = training.recipe.crosscoder.sparsity.model_copy(update={"budget": "joint"})
    keep = budgets(training.crosscoder, sparsity, 64 * 3)
    return encode_sparse(training.crosscoder, rows, sparsity, keep, training.guess, training.encoder)


def fit(store, recipe, path: Path) -> Crosscoder:
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    return train(recipe, store, folder, Progress(folder, recipe.name))


def test_a_trained_crosscoder_explains_most_of_the_held_out_rows(tmp_path):
    store, recipe = tiny_activations(tmp_path / "store", rows=12_288), tiny_recipe(training={"epochs": 6})
    fit(store, recipe, tmp_path / "run")

    folder = RunFolder(tmp_path / "run")
    measures = evaluate(store, Crosscoder.load(folder.path), Progress(folder, "tiny"))

    explained = {m["source"]: m["value"] for m in measures if m["measure"] == "variance_explained"}
    active = next(m["value"] for m in measures if m["measure"] == "l0")
    assert explained["left"] > 0.7 and explained["right"] > 0.7
    assert active == pytest.approx(3, abs=0.5)


def test_training_killed_at_any_moment_ends_with_the_same_weights_to_the_bit(tmp_path):
    store, recipe = tiny_activations(tmp_path / "store"), tiny_recipe(training={"epochs": 24})
    fit(store, recipe, tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "crosscoder.safetensors")
    rng = random.Random(3)
    for _ in range(10):
        process = fork(fit, store, recipe, tmp_path / "killed")
        wait_for_a_step(tmp_path / "killed" / "metrics.jsonl", process)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was still running"
    fit(store, recipe, tmp_path / "killed")

    found = load_file(tmp_path / "killed" / "crosscoder.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "metrics of repeated steps are there once"


def wait_for_a_step(metrics: Path, process: Any) -> None:
    """Wait until the process has logged another line or has ended."""
    before = metrics.read_text() if metrics.is_file() else ""
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text()) > len(before):
            return
        time.sleep(0.005)


def test_a_truncated_checkpoint_is_skipped_for_the_one_before_it(tmp_path):
    store, recipe = tiny_activations(tmp_path / "store"), tiny_recipe()
    fit(store, recipe, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:500])

    found = latest(tmp_path / "run" / "checkpoints", fingerprint_of(recipe, store))

    assert found is not None
    assert found.step == int(checkpoints[0].stem.removeprefix("step-"))


def test_a_checkpoint_of_another_recipe_is_not_used(tmp_path):
    store = tiny_activations(tmp_path / "store")
    fit(store, tiny_recipe(), tmp_path / "run")

    assert latest(tmp_path / "run" / "checkpoints", fingerprint_of(tiny_recipe(training={"seed": 1}), store)) is None


def test_only_dead_features_receive_gradient_from_their_loss(tmp_path):
    training = Training(tiny_recipe(), tiny_activations(tmp_path / "store"))
    rows = training.crosscoder.normalise(next(iter(training.remaining_batches())))
    encoding = encode(training, rows)
    dead = {"shared": torch.tensor([4, 7]), "left": torch.tensor([1]), "right": torch.tensor([], dtype=torch.int64)}

    loss = dead_features_loss(training.crosscoder, encoding, dead, k=4)
    assert loss is not None
    loss.backward()

    weights = training.crosscoder.weights
    for kind in ("encoder", "decoder"):
        touched = weights[f"{kind}.right.shared"].grad.abs().sum(dim=1).nonzero().flatten().tolist()
        assert set(touched) <= {4, 7} and touched
        assert weights[f"{kind}.left.left"].grad.abs().sum(dim=1).nonzero().flatten().tolist() == [1]
        assert weights[f"{kind}.right.right"].grad is None or weights[f"{kind}.right.right"].grad.abs().sum() == 0
    assert weights["decoder_bias.left"].grad is None, "the error contains the bias already"


def test_products_of_dead_features_have_few_shapes(tmp_path):
    training = Training(tiny_recipe(), tiny_activations(tmp_path / "store"))
    rows = training.crosscoder.normalise(next(iter(training.remaining_batches())))
    encoding, shapes = encode(training, rows), set()
    shared = next(group for group in training.crosscoder.groups if group.name == "shared")
    none = torch.tensor([], dtype=torch.int64)

    class RecordShapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}:
                shapes.add((func, *(tuple(x.shape) for x in args)))
            return func(*args, **(kwargs or {}))

    for count in range(1, shared.features + 1):
        with RecordShapes():
            dead = {group.name: none for group in training.crosscoder.groups} | {"shared": torch.arange(count)}
            dead_features_loss(training.crosscoder, encoding, dead, k=4)

    padded_sizes = -(-shared.features // 16)
    assert shared.features > 4 * padded_sizes, "there is something to pad"
    # One product encodes, and one decodes for each of the two sources, whose widths differ.
    assert 0 < len(shapes) <= 3 * padded_sizes


def test_the_loss_of_a_step_equals_the_dense_definition(tmp_path):
    training = Training(tiny_recipe(), tiny_activations(tmp_path / "store"))
    crosscoder = training.crosscoder
    training.encoder.compute = torch.float32
    rows = crosscoder.normalise(next(iter(training.remaining_batches())))

    encoding = encode(training, rows)

    pre = torch.cat([crosscoder.pre_activations(group, rows) for group in crosscoder.groups], dim=1)
    scale = torch.cat([crosscoder.score_scale(group) for group in crosscoder.groups])
    bound = (pre * scale).flatten().topk(64 * 3).values[-1]
    active = pre * (pre * scale >= bound)
    expected = [
        (rows[s] - crosscoder.weights[f"decoder_bias.{s}"] - active @ crosscoder.decoder(s)).square().mean()
        for s in crosscoder.sources
    ]
    torch.testing.assert_close(reconstruction_loss(encoding), torch.stack(expected).mean())


def test_batches_cover_every_row_once_per_epoch_in_another_order_each_time(tmp_path):
    store = tiny_activations(tmp_path / "store", rows=1536, shards=4)
    batches = Batches(store, batch=64, seed=1, window=800)

    first = torch.cat([rows["left"] for rows in batches.epoch(0)])
    second = torch.cat([rows["left"] for rows in batches.epoch(1)])

    everything = torch.cat([block.rows["left"] for block in store.blocks("train")])
    assert torch.equal(first.sort(dim=0).values, everything.sort(dim=0).values)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("skipped", [1, 9, 15])
def test_batches_from_the_middle_of_an_epoch_equal_those_of_a_whole_one(tmp_path, skipped):
    batches = Batches(tiny_activations(tmp_path / "store", rows=1000, shards=3), batch=60, seed=1, window=500)

    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, first=skipped))

    assert len(whole) == 16 and len(rest) == 16 - skipped
    assert all(torch.equal(a["right"], b["right"]) for a, b in zip(whole[skipped:], rest, strict=True))


def test_sources_keep_their_rows_together_when_shuffled(tmp_path):
    store = tiny_activations(tmp_path / "store")
    pairs = {
        tuple(a.tolist()): tuple(b.tolist())
        for block in store.blocks("train")
        for a, b in zip(block.rows["left"], block.rows["right"], strict=True)
    }

    for rows in Batches(store, batch=64, seed=1).epoch(0):
        assert all(
            pairs[tuple(a.tolist())] == tuple(b.tolist()) for a, b in zip(rows["left"], rows["right"], strict=True)
        )


def test_a_store_smaller_than_one_batch_is_rejected_with_both_sizes(tmp_path):
    with pytest.raises(StoreError, match=r"fewer than one batch of 4,096"):
        Training(tiny_recipe(training={"batch": 4096}), tiny_activations(tmp_path / "store", rows=600))


def test_the_first_twenty_losses_equal_the_recorded_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 1)
    recipe = tiny_recipe(training={"precision": "float32"})
    training = Training(recipe, tiny_activations(tmp_path / "store"))

    losses = [training.run_step(rows)["loss"] for rows, _ in zip(training.remaining_batches(), range(20), strict=False)]

    # A change that is not meant to alter results must reproduce them; one that is replaces the file and says why.
    recorded = json.loads(Path(__file__).with_name("tiny_loss_trace.json").read_text())
    assert losses == pytest.approx(recorded, rel=1e-6)
