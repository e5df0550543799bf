"""Whole runs with residual dictionaries beside the crosscoder, from harvest to the results that pages read."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from app.cli import main
from app.worker.direction import read_direction
from tests.worlds.tiny_diff import result_rows, tiny_diff
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.pipeline.commands import run
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore
from trainer.training.stage import train

DETECTED = ("left-given-right", "right-given-left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dfc run with three trainings of its residual dictionaries, and a calibration."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("CROSSDIFF_HOME", str(home / "data"))
        recipe = tiny_diff(
            home / "world",
            crosscoder={
                "variant": "dfc",
                "features": 48,
                "exclusive_share": 0.1,
                "sparsity": {"k": 6},
                "residual": {"features": 24, "k": 4, "trainings": 3, "found_in": 1},
            },
            calibration={"rows": 1000, "amplitudes": [0.8], "frequencies": [0.05], "per_cell": 2},
        )
        yield run(recipe)


def test_what_trainings_have_in_common_follows_the_crosscoders_own_features(folder):
    crosscoder = Crosscoder.load(folder.path)
    beside = [group for group in crosscoder.groups if not group.reconstructs]

    assert [group.name for group in beside] == list(DETECTED)
    assert beside[0].first == 48 and crosscoder.trainings == 3
    for group in beside:
        assert set(crosscoder.recurrence[group.name].tolist()) <= {1, 2, 3}
    assert result_rows(folder, "select count(*) from feature") == [(crosscoder.features,)]


def test_claims_are_made_of_residual_features_only_and_name_the_source_that_they_describe(folder):
    claimed = "select distinct group_name, owner from feature where verdict not in ('', 'untested') and firings > 0"
    assert sorted(result_rows(folder, claimed)) == [(DETECTED[0], "left"), (DETECTED[1], "right")]
    own = "select distinct group_name, verdict from feature where feature < 48 and owner in ('left', 'right')"
    assert set(result_rows(folder, own)) == {("left", "untested"), ("right", "untested")}


def test_recurrence_is_that_of_the_other_trainings(folder):
    counts = "select distinct found_in, looked_in from feature where feature >= 48 order by 1"
    assert set(result_rows(folder, counts)) <= {(0, 2), (1, 2), (2, 2)}
    assert result_rows(folder, "select distinct looked_in from feature where feature < 48") == [(0,)]


def test_reconstructions_are_those_of_the_crosscoder_alone(folder):
    measures = dict(result_rows(folder, "select measure, value from evaluation where source is null"))
    assert measures["l0"] < 12, "six active features of the crosscoder, none of the residual dictionaries"
    assert result_rows(folder, "select count(*) from evaluation where measure = 'variance_predicted'") == [(0,)]


def test_calibration_repeats_the_residual_dictionaries(folder):
    calibration = json.loads(folder.calibration.read_text())

    nulls = {(one["kind"], one["source"]) for one in calibration["null_claims"]}
    assert {("noise", "left"), ("noise", "right")} <= nulls
    assert set(calibration["noise_strengths"]) == {"left", "right"}
    assert {(row["placement"], row["source"]) for row in calibration["spike_in"]} == {
        ("exclusive", "left"),
        ("exclusive", "right"),
        ("shared", None),
    }


def test_steering_pushes_along_a_residual_feature(folder):
    crosscoder = Crosscoder.load(folder.path)
    first = next(group.first for group in crosscoder.groups if group.name == DETECTED[1])
    found = read_direction(folder, first, "right")
    expected = crosscoder.decoder("right")[first] / crosscoder.normaliser["right"].scale
    assert found.vector.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-7)
    assert not read_direction(folder, first, "left").writes


def test_other_tools_get_the_crosscoder_alone_and_are_told(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDIFF_HOME", str(folder.path.parents[1]))
    beside = Crosscoder.load(folder.path).features - 48

    done = CliRunner().invoke(
        main, ["export", folder.run_id, str(tmp_path / "out"), "--format", "sparsify", "--option", "k=6"]
    )

    assert done.exit_code == 0, done.output
    assert f"Left out: {beside} features of residual dictionaries" in done.output
    with safe_open(tmp_path / "out" / "sae.safetensors", "pt") as written:
        assert {48} < {size for name in written.keys() for size in written.get_slice(name).get_shape()}  # noqa: SIM118


@pytest.fixture
def again(folder, tmp_path, monkeypatch) -> tuple[RunFolder, ActivationStore, Recipe]:
    """A copy of the run, its store, and its recipe with another shuffle, as after a change of code or machine."""
    home = tmp_path / "data"
    shutil.copytree(folder.path.parents[1], home)
    monkeypatch.setenv("CROSSDIFF_HOME", str(home))
    run = RunFolder(home / "runs" / folder.run_id)
    recipe = load_recipe(run.recipe)
    changed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"shuffle_seed": 7})})
    store = next(path for path in (home / "activations").iterdir() if path.is_dir())
    return run, ActivationStore.open(store), changed


def test_a_training_that_ends_before_its_residuals_are_added_forgets_no_place(again, monkeypatch):
    run, store, recipe = again
    before = Crosscoder.load(run.path).identity

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.training.stage.with_consensus", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, store, run, Progress(run, "again"))

    assert Crosscoder.load(run.path).identity == before
    train(recipe, store, run, Progress(run, "again"))
    after = Crosscoder.load(run.path).identity
    assert all(after[name][: len(known)] == known for name, known in before.items())


def test_training_again_keeps_places_and_ids_of_what_is_found_again(again):
    run, store, recipe = again
    before = Crosscoder.load(run.path)

    train(recipe, store, run, Progress(run, "again"))

    after = Crosscoder.load(run.path)
    for group in (one for one in before.groups if one.name in before.identity):
        known, now = before.identity[group.name], after.identity[group.name]
        assert now[: len(known)] == known
        name = f"decoder.{group.writes[0]}.{group.name}"
        same = torch.nn.functional.cosine_similarity(before.weights[name], after.weights[name][: len(known)])
        found = after.recurrence[group.name][: len(known)] > 0
        assert (same[found] >= 0.8 - 1e-6).all() and found.any()
        assert (same[~found] > 1 - 1e-6).all(), "the direction is kept where nothing was found"


def test_a_streamed_run_has_residual_dictionaries_of_the_rows_that_are_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDIFF_HOME", str(tmp_path / "data"))
    recipe = tiny_diff(
        tmp_path / "world",
        crosscoder={
            "features": 48,
            "exclusive_share": 0.1,
            "sparsity": {"k": 4},
            "residual": {"features": 24, "k": 4, "trainings": 2, "found_in": 1},
        },
        harvest={"rows": 2300, "outlier_norm": 20, "stream": {"buffer": 400, "sample": 1000}},
        training={"batch": 128, "epochs": 1, "learning_rate": 0.01, "checkpoint_every": 8},
    )

    crosscoder = Crosscoder.load(run(recipe, stages=("harvest", "train")).path)

    assert [group.name for group in crosscoder.groups if not group.reconstructs] == list(DETECTED)
    assert crosscoder.trainings == 2
