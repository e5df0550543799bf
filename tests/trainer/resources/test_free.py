"""Estimates warn, arithmetic refuses, and `--anyway` goes on."""

import re

import pytest
from click.testing import CliRunner

from app.cli import main
from tests.worlds.tiny_activations import tiny_activations
from trainer.errors import DoesNotFit
from trainer.pipeline.commands import run
from trainer.recipe.recipe import load_recipe
from trainer.resources import free
from trainer.resources.estimate import stage_costs
from trainer.store.store import ActivationStore

RECIPE = "name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1}\ntraining: {batch: 64}\n"


@pytest.fixture
def recipe(tmp_path):
    tiny_activations(tmp_path / "store")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def least(recipe, tmp_path):
    """Bytes that a training cannot do without, by stage."""
    store = ActivationStore.open(tmp_path / "store")
    costs = stage_costs(load_recipe(recipe), {}, store.widths, rows=store.count("train"))
    return {cost.stage: cost.least for cost in costs}


def test_an_estimate_above_what_is_free_warns_and_goes_on(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(free, "free_memory", lambda: 1_000_000)

    folder = run(recipe, activations=tmp_path / "store", stages=("harvest", "train"), force=True)

    assert folder.crosscoder.is_file()
    assert "warning: train needs about" in capsys.readouterr().err
    assert re.search(r"warning: train needs about [\d.]+ [MG]B of memory and 1 MB are free\.", folder.log.read_text())


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_what_cannot_fit_by_arithmetic_is_refused_also_with_force_unless_anyway(
    recipe, tmp_path, monkeypatch, least, resource
):
    name = {"memory": "total_memory", "disk": "free_disk"}[resource]
    monkeypatch.setattr(free, name, lambda: getattr(least["train"], resource) - 1)
    arguments = ["train", str(recipe), "--activations", str(tmp_path / "store")]

    for refused in (arguments, [*arguments, "--force"]):
        result = CliRunner().invoke(main, refused)
        assert result.exit_code == 1
        assert re.search(rf"train needs at least [\d.]*[1-9][\d.]* MB of {resource}", result.output)
        assert "--anyway" in result.output
    result = CliRunner().invoke(main, [*arguments, "--anyway"])
    assert result.exit_code == 0 and "warning: train needs at least" in result.output


def test_the_memory_of_a_sweep_is_that_of_all_its_trainings(recipe, tmp_path, monkeypatch, least):
    recipe.write_text(RECIPE + "sweep: {training.seed: [0, 1, 2]}\n")
    monkeypatch.setattr(free, "total_memory", lambda: 2 * least["train"].memory)
    options = {"activations": tmp_path / "store", "stages": ("harvest", "train")}

    with pytest.raises(DoesNotFit, match="train needs at least"):
        run(recipe, **options)
    monkeypatch.setattr(free, "total_memory", lambda: 3 * least["train"].memory)
    assert run(recipe, **options).crosscoder.is_file()
