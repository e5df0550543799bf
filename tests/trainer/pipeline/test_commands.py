"""Whole runs on tiny models: stages, skipping, resuming, calibration and sweeps."""

import json
import os
import signal

import duckdb
import pytest

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_diff import tiny_diff
from trainer.errors import RecipeError, StoreError
from trainer.pipeline.commands import calibrate_run, run
from trainer.reading import activations
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress, read_progress
from trainer.run.stages import STAGES


@pytest.fixture
def recipe(tmp_path):
    return tiny_diff(tmp_path / "world")


def test_a_run_publishes_results_with_the_features_of_both_models(recipe):
    folder = run(recipe)

    state = read_progress(folder)
    assert state["status"] == "finished"
    assert [stage["state"] for stage in state["stages"]] == ["done", "done", "done", "skipped", "done"]
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        assert results.sql("select name from source order by source").fetchall() == [("left",), ("right",)]
        assert results.sql("select count(*) from feature").fetchall() == [(48,)]
        assert results.sql("select count(*) from firing where bucket = 'top'").fetchall()[0][0] > 20
        assert results.sql("select distinct source from logit order by 1").fetchall() == [(0,), (1,)]
        explained = results.sql("select value from evaluation where measure = 'variance_explained'").fetchall()
        assert len(explained) == 2 and all(0 < value < 1 for (value,) in explained)
        assert results.sql("select sum(value) from coverage where measure = 'anchors'").fetchall()[0][0] > 2500


def test_a_second_run_does_nothing_and_a_change_redoes_only_what_depends_on_it(recipe):
    folder = run(recipe)
    weights, published = folder.weights.stat().st_mtime_ns, folder.results()

    run(recipe)
    assert [stage["state"] for stage in read_progress(folder)["stages"]] == ["skipped"] * 5
    assert folder.weights.stat().st_mtime_ns == weights and folder.results() == published

    other = run(recipe, ("training.seed=1",))
    states = {stage["stage"]: stage["state"] for stage in read_progress(other)["stages"]}
    assert other.path != folder.path
    assert states == dict.fromkeys(("train", "evaluate", "analyse"), "done") | {
        "harvest": "skipped",
        "calibrate": "skipped",
    }
    assert json.loads(other.store.read_text()) == json.loads(folder.store.read_text()), "the harvest is shared"


def test_training_on_an_existing_store_needs_no_models(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1}\ntraining: {batch: 64}\n")

    folder = run(recipe, activations=tmp_path / "store")

    with duckdb.connect(str(folder.results()), read_only=True) as results:
        assert results.sql("select name, width from source order by source").fetchall() == [("left", 12), ("right", 20)]
        assert results.sql("select count(*) from sequence").fetchall() == [(0,)]


def test_force_trains_from_the_first_step(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 40}\ntraining: {batch: 64, checkpoint_every: 4}\n")

    folder = run(recipe, activations=tmp_path / "store", stages=("harvest", "train"))
    first = sorted(folder.checkpoints.iterdir())
    assert first, "there is something to go on from"
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    folder.metrics.unlink()
    run(recipe, activations=tmp_path / "store", stages=("train",), force=True)

    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == steps


CALIBRATED = """
name: mine
crosscoder: {features: 40, exclusive_share: 0.1, sparsity: {k: 3}}
training: {batch: 64}
calibration: {rows: 1500, amplitudes: [0.8], frequencies: [0.03], per_cell: 2}
"""


def _spike_ins(folder):
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        return results.sql("select placement, source, planted from spike_in order by all").fetchall()


def test_a_recipe_with_calibration_is_calibrated_once(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CALIBRATED)

    folder = run(recipe, activations=tmp_path / "store")
    states = [stage["state"] for stage in read_progress(folder)["stages"]]
    run(recipe, activations=tmp_path / "store")

    assert states == ["skipped"] + ["done"] * 4
    assert [stage["state"] for stage in read_progress(folder)["stages"]] == ["skipped"] * 5
    assert _spike_ins(folder) == [("exclusive", 0, 2), ("exclusive", 1, 2), ("shared", None, 2)]


def test_a_finished_run_is_calibrated_later_and_published_again(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CALIBRATED[: CALIBRATED.index("calibration")])
    folder = run(recipe, activations=tmp_path / "store")
    before = folder.results()
    assert _spike_ins(folder) == []

    calibrate_run(folder, ("calibration.rows=1000", "calibration.per_cell=1", "calibration.frequencies=[0.05]"))

    assert folder.results() != before
    assert sum(planted for *_, planted in _spike_ins(folder)) == 9
    with pytest.raises(RecipeError, match="rwos"):
        calibrate_run(folder, ("calibration.rwos=1000",))


def test_a_forced_calibration_trains_from_the_first_step(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CALIBRATED)
    folder = run(recipe, activations=tmp_path / "store")
    metrics = folder.calibration_work / "noise-left" / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]

    metrics.unlink()
    calibrate_run(folder, force=True)

    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == steps


@pytest.fixture(scope="module")
def small_pools():
    """Makes pools so small that the tiny corpus has several, as real ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "POOL_ROWS", 400)
        patch.setattr(activations, "DOCUMENTS_PER_READ", 4)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_pools):
    """A recipe, and the findings of an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = tiny_diff(folder / "world", calibration={"rows": 1000, "per_cell": 1, "frequencies": [0.05]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDIFF_HOME", str(folder / "home"))
        return recipe, _findings(run(recipe))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_interrupted_in_any_stage_resumes_to_the_same_findings(uninterrupted, tmp_path, monkeypatch, stage):
    recipe, expected = uninterrupted
    monkeypatch.setenv("CROSSDIFF_HOME", str(tmp_path / "stopped"))
    folder, advance, seen = RunFolder.for_recipe(load_recipe(recipe)), Progress.advance, []

    def stopped(progress: Progress, done: int, **measures: float) -> None:
        advance(progress, done, **measures)
        if read_progress(folder)["stage"] == stage and done:
            seen.append(done)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "advance", stopped)
        run(recipe)
    state = read_progress(folder)
    assert (state["status"], state["stage"]) == ("stopped", stage)
    assert state["error"] == "Stopped. The same command goes on from here."

    assert _findings(run(recipe)) == expected
    before = STAGES.index(stage)
    states = [one["state"] for one in read_progress(folder)["stages"]]
    assert states == ["skipped"] * before + ["done"] * (5 - before)
    assert not [path for path in (tmp_path / "stopped").rglob("*") if path.name.endswith(".draft")]


def _findings(folder):
    """All results about features, and the calibration."""
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        tables = ("feature", "feature_source", "evidence", "firing", "evaluation", "calibration", "baseline_divergence")
        return {table: repr(results.sql(f"from {table} order by all").fetchall()) for table in tables}


def test_a_modified_store_is_rejected_before_training(tmp_path):
    store = tiny_activations(tmp_path / "store")
    shard = store.path / store.manifest.shards[0].file
    from safetensors.torch import load_file, save_file

    tensors = load_file(shard)
    tensors["left"][3, 2] = float("nan")
    save_file(tensors, shard)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\n")
    with pytest.raises(StoreError, match="checksum differs"):
        run(recipe, activations=store.path)


def test_a_recipe_without_sources_is_rejected_with_how_to_use_a_store(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\n")
    with pytest.raises(RecipeError, match="--activations DIR"):
        run(recipe)


def test_an_error_is_recorded_in_the_progress_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 1}\n")
    tiny_activations(tmp_path / "store")
    with pytest.raises(RecipeError, match="Each group needs at least one") as error:
        run(recipe, activations=tmp_path / "store")

    state = json.loads(next((tmp_path / "crossdiff-home" / "runs").glob("*/progress.json")).read_text())
    assert (state["status"], state["error"]) == ("failed", str(error.value))


def test_a_store_that_is_not_there_leaves_no_run(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\n")
    with pytest.raises(StoreError, match="No activation store at"):
        run(recipe, activations=tmp_path / "nothing")
    assert not (tmp_path / "crossdiff-home" / "runs").exists()


def test_runs_of_a_sweep_are_trained_side_by_side_and_equal_single_runs(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1, sparsity: {k: 3}}\n"
        "training: {batch: 64, epochs: 1}\nsweep: {training.seed: [0, 1], crosscoder.features: [40, 60]}\n"
    )
    run(recipe, activations=tmp_path / "store", stages=("train",))
    swept = sorted((tmp_path / "crossdiff-home" / "runs").iterdir())
    together = {path.name: (path / "crosscoder.safetensors").read_bytes() for path in swept}
    assert len(together) == 4

    for path in swept:
        (path / "crosscoder.safetensors").unlink()
        (path / "stages.json").unlink()
        for checkpoint in (path / "checkpoints").glob("*"):
            checkpoint.unlink()
        run(path / "recipe.yaml", activations=tmp_path / "store", stages=("train",))
        assert (path / "crosscoder.safetensors").read_bytes() == together[path.name]


def test_every_run_of_a_sweep_is_analysed_with_all_the_others_and_once(tmp_path, own_home):
    recipe = tiny_diff(tmp_path / "world", sweep={"training.seed": [0, 1]})
    run(recipe)
    published = sorted((own_home / "runs").glob("*/results-*.duckdb"))
    looked_in = []
    for path in published:
        with duckdb.connect(str(path), read_only=True) as results:
            looked_in += results.sql("select count(*) from evidence where test = 'found_again'").fetchall()

    run(recipe)

    assert len(published) == 2
    assert all(count > 0 for (count,) in looked_in), "the first one, too, knows the second"
    assert sorted((own_home / "runs").glob("*/results-*.duckdb")) == published


def test_a_sweep_over_a_shared_setting_is_rejected(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\nsweep: {training.batch: [64, 128]}\n")
    with pytest.raises(RecipeError, match="runs share their rows"):
        run(recipe, activations=tmp_path / "store")
