"""Baselines as a part of whole runs, from models to the tables of the results."""

import json
import shutil
from pathlib import Path

import duckdb
import pytest
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_diff import tiny_diff
from trainer.baselines.stage import pairs_of_models
from trainer.pipeline.commands import run
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import read_progress

ONE_SPACE = {"same_space": [["base", "tuned"]], "contexts": {"top": 2, "per_quantile": 1, "window": 6}, "logits": 3}


@pytest.fixture
def tuned_world(tmp_path: Path) -> Path:
    """A recipe that compares a model with itself and one that writes a little more in every direction at layer 0."""
    world = tmp_path / "world"
    recipe = tiny_diff(
        world,
        sources=[
            {"name": name, "model": str(world / folder), "layer": 1, "dtype": "float32"}
            for name, folder in (("base", "llama"), ("tuned", "tuned"))
        ],
        analysis=ONE_SPACE,
        baselines={"diff_sae": True, "sequences": 5},
        harvest={"rows": 1500, "outlier_norm": 20},
        training={"batch": 128, "epochs": 1, "learning_rate": 0.01},
    )
    shutil.copytree(world / "llama", world / "tuned")
    weights = load_file(world / "tuned" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.2
    save_file(weights, world / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return recipe


def table(folder: RunFolder, sql: str) -> list[tuple]:
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        return results.sql(sql).fetchall()


def test_models_apart_are_compared_by_bytes_and_have_no_activation_difference(tmp_path):
    folder = run(tiny_diff(tmp_path / "world"))

    states = {name: (state, reason) for name, state, reason in table(folder, "from baseline")}
    assert states["divergence"] == ("measured", "")
    assert states["lens"][0] == "undefined" and "no two of left, right share a space" in states["lens"][1]
    assert states["diff_sae"][0] == "undefined"
    assert table(folder, "select * from baseline_difference") == table(folder, "select * from baseline_lens") == []
    corpora = table(folder, "select distinct corpus from baseline_divergence order by corpus nulls first")
    assert corpora == [(None,), ("chats",), ("texts",)]
    whole = dict(table(folder, "select measure, value from baseline_divergence where corpus is null and base = 0"))
    assert whole.keys() == {"surprise_apart", "jensen_shannon_byte", "kl_base_source_byte", "kl_source_base_byte"}
    assert 0 < whole["jensen_shannon_byte"] < 0.6932
    ((tokens, places),) = table(folder, "select tokens, places from baseline_passage where rank = 0")
    assert len(tokens) == 2 and len(places) >= 20
    assert {place["byte_end"] for place in places} <= {token["byte_end"] for token in tokens[1]}


def test_a_fine_tune_is_read_off_its_activation_difference_and_gets_a_diff_sae(tuned_world):
    folder = run(tuned_world)

    states = {name: (state, reason) for name, state, reason in table(folder, "from baseline")}
    assert states["lens"] == states["divergence"] == ("measured", "")
    beside = RunFolder.for_recipe(load_recipe(tuned_world).diff_sae_variant())
    assert states["diff_sae"] == ("measured", beside.run_id)
    assert table(beside, "select name from source order by source")[2] == ("tuned-minus-base",)
    assert table(beside, "select state from baseline where baseline = 'lens'") == [("measured",)]
    rows = table(folder, "select position, texts, norm from baseline_difference order by position")
    assert [position for position, _, _ in rows] == [0, 1, 2, 3, 4]
    assert min(norm for _, _, norm in rows) > 0
    read = table(folder, "select reader, position, count(*) from baseline_lens group by all order by all")
    assert read == [(reader, position, 6) for reader in (0, 1) for position in range(5)]
    assert "jensen_shannon_token" in {name for (name,) in table(folder, "select measure from baseline_divergence")}


def test_the_same_run_measures_nothing_again_and_a_changed_setting_does(tuned_world):
    run(tuned_world, ("baselines.diff_sae=false",), stages=("harvest", "train", "evaluate"))
    folder = run(tuned_world, ("baselines.diff_sae=false",), stages=("evaluate",))
    assert {s["stage"]: s["state"] for s in read_progress(folder)["stages"]}["evaluate"] == "skipped"

    stored = folder.recipe.read_text().replace("lens: true", "lens: false")
    folder.recipe.write_text(stored)
    run(folder.recipe, stages=("evaluate",))

    assert {s["stage"]: s["state"] for s in read_progress(folder)["stages"]}["evaluate"] == "done"
    states = {row["baseline"]: row["state"] for row in json.loads(folder.baselines.read_text())["baseline"]}
    assert states["lens"] == "off"


def test_a_store_without_models_says_why_nothing_was_compared(tmp_path):
    tiny_activations(tmp_path / "store")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1}\ntraining: {batch: 64}\n")

    folder = run(recipe, activations=tmp_path / "store")

    assert "the models are not compared directly, because the recipe has no sources" in folder.log.read_text()
    assert ("divergence", "impossible", "the recipe has no sources") in table(folder, "from baseline")


def test_layers_of_one_model_are_not_compared_with_themselves():
    def source(name: str, model: str, layer: int) -> SourceRecipe:
        return SourceRecipe(name=name, model=model, layer=layer)

    sources = [source("a3", "a", 3), source("a7", "a", 7), source("b3", "b", 3), source("b7", "b", 7)]

    assert pairs_of_models(sources) == [(0, 2)]
    assert pairs_of_models(sources[:2]) == []
