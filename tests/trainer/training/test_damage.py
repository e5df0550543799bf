"""Diverged trainings stop with a sentence; damaged checkpoints and metrics are passed over, never resumed from."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.errors import TrainingError
from trainer.run.folder import RunFolder, write_json
from trainer.run.progress import Progress, read_progress
from trainer.training.stage import train
from trainer.training.trainer import Training


class Interrupted(Exception):
    """Stands for a kill between two steps."""


def fit(store, recipe, path, *, until=None, monkeypatch=None):
    """Train in a folder, and stop after a step if `until` is given."""
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    if until is None:
        train(recipe, store, folder, Progress(folder, "tiny"))
        return
    run_step = Training.run_step

    def run_and_stop(self, rows):
        if self.step == until:
            raise Interrupted
        return run_step(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Training, "run_step", run_and_stop)
        train(recipe, store, folder, Progress(folder, "tiny"))


def with_setting(recipe, section, **values):
    """The recipe with values that a recipe file may not hold."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def weights(path):
    return load_file(path / "crosscoder.safetensors")


@pytest.mark.parametrize("sparsity", [{}, {"kind": "topk"}, {"kind": "l1"}, {"kind": "jumprelu"}])
def test_a_diverging_training_stops_at_its_first_loss_that_is_no_number(tmp_path, sparsity):
    recipe = tiny_recipe(
        training={"checkpoint_every": 1},
        crosscoder={"features": 40, "sparsity": {"k": 3, "anneal_share": 0.2} | sparsity},
    )
    recipe = with_setting(recipe, "training", learning_rate=1e30)
    folder = RunFolder(tmp_path / "run")

    with pytest.raises(
        TrainingError, match=r"loss at step [23] is not a number, with training.learning_rate 1e\+30\. Set"
    ):
        fit(tiny_activations(tmp_path / "store"), recipe, folder.path)

    assert not folder.weights.exists()
    assert all(map(math.isfinite, read_progress(folder)["measures"].values()))
    for path in folder.checkpoints.glob("step-*"):
        assert path.name in ("step-00000001.safetensors", "step-00000002.safetensors")


def test_activations_too_large_for_float32_are_not_blamed_on_the_learning_rate(tmp_path):
    with pytest.raises(TrainingError, match=r"cannot begin: its first loss is not a number\. The activations"):
        fit(
            tiny_activations(tmp_path / "store"),
            with_setting(tiny_recipe(), "crosscoder", decoder_norm=1e30),
            tmp_path / "run",
        )


def test_a_training_that_ends_far_from_its_rows_is_refused(tmp_path):
    recipe = with_setting(tiny_recipe(training={"decay_share": 0.0}), "training", learning_rate=1e4)

    with pytest.raises(TrainingError, match=r"in the end it explains -.* of the variance of (left|right), where"):
        fit(tiny_activations(tmp_path / "store"), recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "crosscoder.safetensors").exists()


def test_metrics_of_rows_without_variance_hold_finite_numbers_alone(tmp_path):
    store, path = tiny_activations(tmp_path / "store"), tmp_path / "run"
    for shard in store.manifest.shards:
        file = store.path / shard.file
        save_file({name: torch.full_like(rows, 2.0) for name, rows in load_file(file).items()}, file)

    fit(store, tiny_recipe(), path)

    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert lines and not any("NaN" in line or "Infinity" in line for line in lines)


def damage_half(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def damage_state(path):
    data = path.read_bytes()
    at = data.index(b"guess")
    digit = next(index for index in range(at, len(data)) if data[index : index + 1].isdigit())
    path.write_bytes(data[:digit] + (b"1" if data[digit : digit + 1] != b"1" else b"2") + data[digit + 1 :])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def without_checksum(path):
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize("damage", [damage_half, damage_bit, damage_state, truncate, without_checksum])
@pytest.mark.parametrize("how_many", [1, 2])
def test_a_damaged_checkpoint_is_passed_over_and_the_weights_are_the_same_to_the_bit(
    tmp_path, monkeypatch, capsys, damage, how_many
):
    store, recipe = tiny_activations(tmp_path / "store"), tiny_recipe()
    fit(store, recipe, tmp_path / "whole")
    fit(store, recipe, tmp_path / "cut", until=23, monkeypatch=monkeypatch)
    for path in sorted((tmp_path / "cut" / "checkpoints").glob("step-*"), reverse=True)[:how_many]:
        damage(path)

    fit(store, recipe, tmp_path / "cut")

    told = capsys.readouterr().err
    assert "checkpoint step-00000020.safetensors is damaged and passed over" in told
    assert ("resuming from step 15" in told) == (how_many == 1)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "line", ["{", "[]", "12", '{"loss": 1}', '{"step": "ten"}', "\x00" * 30, "[" * 100_000, '{"step": 1} x', "\udcff"]
)
def test_a_damaged_line_of_metrics_is_left_out_and_told(tmp_path, monkeypatch, capsys, line):
    store, recipe = tiny_activations(tmp_path / "store"), tiny_recipe()
    fit(store, recipe, tmp_path / "run", until=23, monkeypatch=monkeypatch)
    metrics = tmp_path / "run" / "metrics.jsonl"
    good = metrics.read_text()
    metrics.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n" + good.encode())

    fit(store, recipe, tmp_path / "run")

    assert "1 damaged lines of metrics.jsonl are left out" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][:3] == [10, 20, 30]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_files_hold_finite_numbers_alone(tmp_path, number):
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", {"value": [number]})
    folder = RunFolder(tmp_path / "run")
    with Progress(folder, "tiny").task("train", total=2) as task:
        task.advance(1, loss=1.0, l0=3.0)
        task.advance(1, loss=number, l0=4.0)
    assert read_progress(folder)["measures"] == {"l0": 4.0}
