"""Streaming trains on harvested rows without storing them, and resumes bit-exactly after a kill."""

import json
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.forked import fork
from tests.worlds.tiny_diff import tiny_diff
from trainer.corpus.mix import open_corpus
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import RecipeError
from trainer.evaluation.reconstruction import evaluate
from trainer.harvest import Harvest
from trainer.models.source import load_source
from trainer.pipeline.commands import run as run_recipe
from trainer.reading import activations
from trainer.reading.activations import ActivationReader
from trainer.reading.stream import ActivationStream
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore
from trainer.training.stage import train, train_streaming
from trainer.training.trainer import Training

TRAINING = {"batch": 64, "epochs": 1, "learning_rate": 0.02, "checkpoint_every": 4}
HARVEST = {"rows": 2300, "outlier_norm": 20, "stream": {"buffer": 400, "sample": 500}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Recipe, models and the store of the first rows."""
    folder = tmp_path_factory.mktemp("world")
    recipe = load_recipe(tiny_diff(folder, harvest=HARVEST, training=TRAINING))
    sources = [load_source(source) for source in recipe.sources]
    with pytest.MonkeyPatch.context() as patch:
        make_pools_small(patch)
        store = Harvest(recipe, sources, folder / "store", "fingerprint").run(progress_in(folder / "harvest"))
    return recipe, sources, store


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    make_pools_small(monkeypatch)


def make_pools_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(activations, "POOL_ROWS", 200)
    patch.setattr(activations, "DOCUMENTS_PER_READ", 4)


def progress_in(path: Path) -> Progress:
    return Progress(RunFolder(path), "tiny")


def streamed(world, path: Path) -> Crosscoder:
    recipe, sources, store = world
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    stream = ActivationStream(recipe, store, lambda: sources, progress_in(path))
    return train_streaming(recipe, store, folder, stream, progress_in(path))


def test_every_row_is_yielded_once_in_shuffled_order(world, tmp_path):
    recipe, sources, store = world
    stream = ActivationStream(recipe, store, lambda: sources, progress_in(tmp_path))
    found, most = [], 0
    for batches in stream.rounds():
        for rows in batches:
            most = max(most, stream._buffered_rows())
            found.append(torch.cat([rows["left"], rows["right"]], dim=1))

    expected = [torch.cat([b.rows["left"], b.rows["right"]], dim=1) for b in store.blocks("train")]
    reader = ActivationReader(recipe, sources, medians=dict(store.manifest.statistics["medians"]), counts=Counter())
    corpus = iter(open_corpus(recipe.corpus))
    for _ in range(store.manifest.statistics["documents"]):
        next(corpus)
    while documents := reader.next_pool(corpus):
        sequences = reader.sequences([document for document in documents if not document.held_out])
        rows = reader.activations(sequences)
        keep = reader.keep_mask(rows, sequences)
        expected.append(torch.cat([rows["left"], rows["right"]], dim=1)[keep])
    in_order = torch.cat(expected)[:2300]
    assert len(torch.cat(found)) == stream.steps * 64 == 35 * 64
    assert not Counter(map(tuple, torch.cat(found).tolist())) - Counter(map(tuple, in_order.tolist()))
    assert not torch.equal(torch.cat(found)[:400], in_order[:400])
    assert most < 400 + 2 * 300, "the buffer and one pool"


def test_only_the_sample_and_its_held_out_rows_are_stored(world):
    _, _, store = world

    assert 500 <= store.count("train") < 800
    assert 0 < store.count("held_out") < 300


def test_streaming_explains_about_as_much_as_training_on_stored_rows(world, tmp_path):
    recipe, sources, _ = world
    plain = Recipe.model_validate(
        recipe.model_dump(mode="json") | {"harvest": {"rows": 2300, "outlier_norm": 20}, "name": "stored"}
    )
    whole = Harvest(plain, sources, tmp_path / "whole", "fingerprint").run(progress_in(tmp_path / "run"))
    stored = train(plain, whole, RunFolder(tmp_path / "run"), progress_in(tmp_path / "run"))
    found = streamed(world, tmp_path / "streamed")

    def explained(crosscoder: Crosscoder) -> list[float]:
        measures = evaluate(whole, crosscoder, progress_in(tmp_path / "run"))
        return [one["value"] for one in measures if one["measure"] == "variance_explained"]

    assert explained(found) == pytest.approx(explained(stored), abs=0.05)
    assert min(explained(found)) > 0.3


def test_a_killed_streaming_training_resumes_to_identical_weights(world, tmp_path):
    streamed(world, tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "crosscoder.safetensors")
    for _ in range(2):
        before = set((tmp_path / "killed" / "checkpoints").glob("step-*"))
        process = fork(streamed, world, tmp_path / "killed")
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if set((tmp_path / "killed" / "checkpoints").glob("step-*")) - before:
                break
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it had not ended yet"
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name[0] != ".")
    assert {name.split("-")[0] for name in kept} == {"step", "waiting"}
    streamed(world, tmp_path / "killed")

    found = load_file(tmp_path / "killed" / "crosscoder.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert not (tmp_path / "killed" / "checkpoints").exists(), "buffered rows are no longer needed"


class Interrupted(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("kind", ["waiting", "step"])
def test_damage_to_a_streams_checkpoint_or_its_buffered_rows_is_passed_over(world, tmp_path, monkeypatch, capsys, kind):
    expected = streamed(world, tmp_path / "whole")
    run_step = Training.run_step

    def run_and_stop(self, rows):
        if len(list((tmp_path / "cut" / "checkpoints").glob("step-*"))) == 2:
            raise Interrupted
        return run_step(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Training, "run_step", run_and_stop)
        streamed(world, tmp_path / "cut")
    newest = max((tmp_path / "cut" / "checkpoints").glob(f"{kind}-*"))
    size = newest.stat().st_size
    with newest.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))

    found = streamed(world, tmp_path / "cut")

    assert f"checkpoint step-{newest.name.partition('-')[2]} is damaged and passed over" in capsys.readouterr().err
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())


def test_a_corpus_that_ends_early_is_reported_with_its_number_of_rows(world, tmp_path, capsys):
    recipe, sources, store = world
    longer = recipe.model_copy(update={"harvest": recipe.harvest.model_copy(update={"rows": 10**6})})
    (tmp_path / "run").mkdir()
    stream = ActivationStream(longer, store, lambda: sources, progress_in(tmp_path / "run"))
    train_streaming(longer, store, RunFolder(tmp_path / "run"), stream, progress_in(tmp_path / "run"))

    assert f"set harvest.rows to {stream.position.entered}" in capsys.readouterr().err
    assert 2300 < stream.position.entered < 10**6


def test_a_streaming_run_publishes_results_like_any_other(tmp_path):
    folder = run_recipe(tiny_diff(tmp_path, harvest=HARVEST, training=TRAINING))

    assert folder.results() is not None
    store = ActivationStore.open(Path(json.loads(folder.store.read_text())["path"]))
    assert 500 <= store.count("train") < 2300


def test_streaming_for_two_epochs_is_rejected(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.epochs to 1"):
        load_recipe(tiny_diff(tmp_path, harvest=HARVEST, training=TRAINING | {"epochs": 2}))


def test_a_stream_ends_when_pool_after_pool_has_no_finite_row(world, tmp_path, monkeypatch):
    recipe, sources, store = world
    original, pools = ActivationReader.next_pool, []

    def counted(self, stream):
        pools.append(original(self, stream))
        return pools[-1]

    monkeypatch.setattr(ActivationReader, "next_pool", counted)
    monkeypatch.setattr(activations, "read", lambda source, *_: torch.full((64, 128, source.width), float("nan")))
    stream = ActivationStream(recipe, store, lambda: sources, progress_in(tmp_path))

    for batches in stream.rounds():
        assert all(bool(torch.isfinite(rows["left"]).all()) for rows in batches)

    assert stream.position.entered == store.count("train")
    assert len(pools) == activations.BARREN_POOLS


def test_rows_that_are_not_finite_are_told_beyond_the_stored_sample_too(world, tmp_path, monkeypatch):
    recipe, sources, store = world
    original = activations.read

    def spoiled(source, *arguments):
        found = original(source, *arguments).clone()
        if source is sources[1]:
            found[:, 9] = float("inf")
        return found

    monkeypatch.setattr(activations, "read", spoiled)
    progress = progress_in(tmp_path)
    stream = ActivationStream(recipe, store, lambda: sources, progress)
    for batches in stream.rounds():
        assert all(bool(torch.isfinite(x).all()) for rows in batches for x in rows.values())

    log = next(tmp_path.rglob("log.txt")).read_text()
    assert re.search(r"train: beyond the stored sample, right: .* NaN or infinite in float32 for [1-9]\d* tokens", log)
    assert "left: " not in log
