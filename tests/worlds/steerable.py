"""A home with a finished run whose models can generate: tiny random models, a random crosscoder and results."""

from pathlib import Path

import torch

from tests.worlds.tiny_models import tiny_gemma3, tiny_llama
from tests.worlds.tiny_results import RUN, write_tiny_run
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder

FEATURES = 24
SHARED, ONLY_SMOLLM2, ONLY_GEMMA3 = 3, 18, 22
"""A feature of each group; the results say the same of them."""
DEAD = 15
WIDTHS = {"smollm2": 16, "gemma3": 24}
GROUPS = (
    Group("shared", 17, 0, ("smollm2", "gemma3"), ("smollm2", "gemma3")),
    Group("smollm2", 4, 17, ("smollm2",), ("smollm2",)),
    Group("gemma3", 3, 21, ("gemma3",), ("gemma3",)),
)
SCALES = {"smollm2": 0.5, "gemma3": 4.0}


def write_steerable_run(home: Path) -> RunFolder:
    """Write models, crosscoder, recipe and results, and return the run's folder."""
    folder = RunFolder(write_tiny_run(home, features=FEATURES))
    tiny_llama(home / "models" / "llama")
    tiny_gemma3(home / "models" / "gemma")
    folder.recipe.write_text(steerable_recipe(home).to_yaml(), encoding="utf-8")
    random_crosscoder().save(folder.path)
    return folder


def steerable_recipe(home: Path, dtype: str = "float32") -> Recipe:
    """Two sources that differ in family, width, tokenizer, hookpoint and chat template."""
    smollm2 = {"name": "smollm2", "model": str(home / "models" / "llama"), "layer": 1, "dtype": dtype}
    gemma3 = {"name": "gemma3", "model": str(home / "models" / "gemma"), "layer": 2, "dtype": dtype}
    return Recipe.model_validate({"name": RUN.rpartition("-")[0], "sources": [smollm2, gemma3]})


def random_crosscoder() -> Crosscoder:
    """Random directions of norm one in normalised space."""
    generator = torch.Generator().manual_seed(0)
    weights = initial_weights(WIDTHS, GROUPS, decoder_norm=1.0, generator=generator)
    normaliser = {name: Normaliser(torch.zeros(width), SCALES[name]) for name, width in WIDTHS.items()}
    return Crosscoder(WIDTHS, GROUPS, weights, normaliser, {group.name: torch.tensor(0.1) for group in GROUPS})
