"""Runs of recipes that leave training settings open: what they were trained with can be read and repeated."""

import json

import duckdb
import pytest
import yaml

from tests.worlds.tiny_activations import tiny_activations
from trainer.pipeline.commands import run
from trainer.run.folder import RunFolder
from trainer.run.progress import read_progress

OPEN = "name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1, sparsity: {k: 3}}\n"


@pytest.fixture
def recipe(tmp_path):
    tiny_activations(tmp_path / "store")
    (tmp_path / "recipe.yaml").write_text(OPEN)
    return tmp_path / "recipe.yaml"


def settings_of(folder: RunFolder) -> tuple[int, int, float, int]:
    stated = yaml.safe_load(folder.recipe.read_text())
    training = stated["training"]
    after_rows = stated["crosscoder"]["dead_features"]["after_rows"]
    return training["epochs"], training["batch"], training["learning_rate"], after_rows


def test_the_run_says_what_it_was_trained_with(recipe, tmp_path):
    folder = run(recipe, activations=tmp_path / "store")

    # 2,046 rows, in which a feature fires 153 times; as many steps as the smallest batch gives; 64 firings of 40 / 3
    # rows; 0.075 over the root of 16, the mean of 12 and 20.
    assert settings_of(folder) == (4, 64, 0.019, 853)
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps[-1] == 4 * (2046 // 64)
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        [(text,)] = results.sql("select recipe_json from run").fetchall()
    assert json.loads(text)["training"] == yaml.safe_load(folder.recipe.read_text())["training"]


def test_the_recipe_in_the_run_s_folder_is_up_to_date_with_it(recipe, tmp_path):
    folder = run(recipe, activations=tmp_path / "store", stages=("train",))
    weights = folder.weights.stat().st_mtime_ns

    for path in (recipe, folder.recipe):
        again = run(path, activations=tmp_path / "store", stages=("train",))

        assert again == folder and folder.weights.stat().st_mtime_ns == weights
        assert read_progress(folder)["stages"][1]["state"] == "skipped"


def test_a_stated_setting_is_another_run_and_stays_as_stated(recipe, tmp_path):
    plain = run(recipe, activations=tmp_path / "store", stages=("train",))
    stated = run(recipe, ("training.epochs=1",), activations=tmp_path / "store", stages=("train",))

    assert stated != plain
    assert settings_of(stated) == (1, 64, 0.019, 853)


def test_a_sweep_over_sizes_trains_those_together_that_share_their_batches(recipe, tmp_path, capsys):
    # Of two features one fires on every second row, 3,000 times in 2.9 passes; of 20 on every 20th, in 29 passes.
    sweep = "sweep: {crosscoder.features: [2, 20, 40, 60]}\n"
    recipe.write_text(OPEN.replace("k: 3", "k: 1").replace("exclusive_share: 0.1", "variant: standard") + sweep)

    run(recipe, activations=tmp_path / "store", stages=("train",))

    folders = [RunFolder(path) for path in sorted((tmp_path / "crossdiff-home" / "runs").iterdir())]
    sizes = {yaml.safe_load(one.recipe.read_text())["crosscoder"]["features"]: settings_of(one)[0] for one in folders}
    assert sizes == {2: 3, 20: 4, 40: 4, 60: 4}
    alone = folders[0]
    together = alone.weights.read_bytes()
    alone.weights.unlink()
    for checkpoint in alone.checkpoints.glob("*"):
        checkpoint.unlink()
    run(alone.recipe, activations=tmp_path / "store", stages=("train",))
    assert alone.weights.read_bytes() == together
