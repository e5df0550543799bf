"""The doctor's findings on a recipe before anything is run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.worlds.tiny_models import byte_level_bpe, tiny_llama
from trainer.errors import DoesNotFit
from trainer.pipeline.commands import run
from trainer.recipe.recipe import load_recipe
from trainer.resources.doctor import Finding, State, check_recipe
from trainer.resources.free import check_fit


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """Two model folders of width 10 and 6; the second keeps its text model's settings in a part of their own."""
    configs = {"left": {"hidden_size": 10}, "right": {"text_config": {"hidden_size": 6}}}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "left"), str(tmp_path / "right")


def test_every_stage_is_estimated_with_memory_disk_and_time(tmp_path: Path, models: tuple[str, str]):
    found = findings_on(tmp_path, models, rows=95_000_000, features=64)

    # 95 million training rows and 5 million held out, each 16 numbers of 2 bytes and twice 12 bytes for its position.
    assert "5.6 GB of disk" in found["stage harvest"].fact
    assert {name for name in found if name.startswith("stage")} == {
        "stage harvest",
        "stage train",
        "stage evaluate",
        "stage analyse",
    }
    assert found["stage train"].state is State.FINE


def test_a_disk_that_is_too_small_is_reported_with_settings_that_fit(tmp_path: Path, models: tuple[str, str]):
    found = findings_on(tmp_path, models, rows=10**12, features=64)

    assert found["stage harvest"].state is State.BROKEN
    assert "harvest.rows=" in found["stage harvest"].remedy and "harvest.stream" in found["stage harvest"].remedy


def test_a_run_is_refused_before_it_begins(tmp_path: Path, models: tuple[str, str]):
    findings_on(tmp_path, models, rows=10**12, features=64)

    refusal = r"harvest needs at least .* GB of disk, .* What would fit: harvest\.rows=.* Add --anyway"
    with pytest.raises(DoesNotFit, match=refusal):
        run(tmp_path / "recipe.yaml")


def test_stages_that_will_not_run_are_no_reason_to_refuse(tmp_path: Path, models: tuple[str, str]):
    findings_on(tmp_path, models, rows=10**12, features=64)
    loaded = load_recipe(tmp_path / "recipe.yaml")

    warnings: list[str] = []
    check_fit(loaded, ["evaluate"], None, warn=warnings.append)
    assert warnings == []
    with pytest.raises(DoesNotFit):
        check_fit(loaded, ["harvest"], None, warn=warnings.append)
    check_fit(loaded, ["harvest"], None, warn=warnings.append, anyway=True)
    assert warnings[0].startswith("warning: harvest needs at least")


def test_nothing_is_estimated_while_a_model_is_missing(tmp_path: Path, models: tuple[str, str]):
    found = findings_on(tmp_path, (models[0], "pypi:some-package==1.0/model.gguf"), rows=1000, features=64)

    assert found["source left"].state is State.FINE
    assert found["source right"].state is State.NOTE
    assert not any(name.startswith("stage") for name in found)


def test_a_folder_without_a_model_is_broken(tmp_path: Path, models: tuple[str, str]):
    found = findings_on(tmp_path, (models[0], str(tmp_path / "nowhere")), rows=1000, features=64)

    assert found["source right"] == Finding(
        "source right",
        f"no model at {tmp_path / 'nowhere'}",
        State.BROKEN,
        "Give a folder with config.json or a .gguf file.",
    )


def test_a_recipe_that_cannot_be_read_is_the_only_finding(tmp_path: Path):
    (finding,) = check_recipe(tmp_path / "none.yaml")

    assert finding.state is State.BROKEN
    assert "No recipe at" in finding.fact


@pytest.mark.parametrize(
    "config", [{"n_positions": 48}, {"max_position_embeddings": 255}, {"text_config": {"max_position_embeddings": 128}}]
)
def test_a_context_beyond_a_models_positions_is_broken(tmp_path: Path, models: tuple[str, str], config: dict[str, Any]):
    (tmp_path / "left" / "config.json").write_text(json.dumps({"hidden_size": 10, **config}))

    found = findings_on(tmp_path, models, rows=1000, features=64)["source left"]

    assert found.state is State.BROKEN
    assert "`corpus.context` is 256 tokens" in found.fact and "Set corpus.context to" in found.fact


@pytest.mark.parametrize(
    "config", [{"max_position_embeddings": 256}, {"rope_scaling": {"factor": 4.0}, "n_ctx": 64}, {}]
)
def test_a_context_within_a_models_positions_is_fine(tmp_path: Path, models: tuple[str, str], config: dict[str, Any]):
    (tmp_path / "left" / "config.json").write_text(json.dumps({"hidden_size": 10, **config}))

    assert findings_on(tmp_path, models, rows=1000, features=64)["source left"].state is State.FINE


def test_a_tokenizer_with_more_tokens_than_embeddings_is_broken(tmp_path: Path, models: tuple[str, str]):
    tiny_llama(tmp_path / "left")
    assert findings_on(tmp_path, models, rows=1000, features=64)["source left"].state is State.FINE
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "left")

    found = findings_on(tmp_path, models, rows=1000, features=64)["source left"]

    assert found.state is State.BROKEN
    assert "knows 401 tokens, such as '<extra>', and the model has embeddings for 400" in found.fact


def findings_on(folder: Path, models: tuple[str, str], *, rows: int, features: int) -> dict[str, Finding]:
    """Findings on a recipe, by the thing checked."""
    content: dict[str, Any] = {
        "name": "mine",
        "sources": [
            {"name": name, "model": model, "layer": 0} for name, model in zip(("left", "right"), models, strict=True)
        ],
        "corpus": {"mix": [{"dataset": "some/dataset"}], "held_out": 0.05},
        "harvest": {"rows": rows},
        "crosscoder": {"features": features},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return {finding.what: finding for finding in check_recipe(path)}
