"""The steering bench steers without changing a token."""

from pathlib import Path

import pytest
import torch

from app.bench.steer import HARMLESS, PROMPT, bench_steer
from app.worker.sampling import Sampling, Steering, generate, prompt_tokens
from tests.worlds.tiny_diff import tiny_diff
from trainer.errors import RecipeError, SourceError
from trainer.models.hookpoint import locate
from trainer.models.source import load_source
from trainer.recipe.recipe import load_recipe


def test_a_tiny_model_gives_all_figures(tmp_path: Path):
    report = bench_steer(tiny_diff(tmp_path), tokens=3, rounds=2)

    assert set(report.figures) == {"overhead", "batch_speedup_8", "first_token_ms"}
    assert report.figures["batch_speedup_8"] is None
    assert report.figures["first_token_ms"] > 0
    assert report.figures["overhead"] > -1


def test_the_added_direction_changes_no_token(tmp_path: Path):
    source = load_source(load_recipe(tiny_diff(tmp_path)).sources[0])
    hookpoint, prompt = locate(source, "resid_post", 1), prompt_tokens(source, PROMPT, chat=False)
    steering = Steering(torch.full((source.width,), HARMLESS), "all")

    steered, plain = (list(generate(source, hookpoint, prompt, Sampling(12), c)) for c in (steering, None))

    assert steered == plain


def test_an_unknown_source_is_named_with_the_known_ones(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no source 'middle'. Its sources: left, right"):
        bench_steer(tiny_diff(tmp_path), source="middle")


def test_a_missing_model_is_not_fetched(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\nsources: [{name: far, model: 'pypi:far-model==1.0/far.gguf', layer: 0}]\n")

    with pytest.raises(SourceError, match="is not on this machine"):
        bench_steer(recipe)
