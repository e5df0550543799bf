"""An activation store with known ground truth: sparse concepts, some in one source only, widths that differ."""

from pathlib import Path
from typing import Any

import torch

from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

WIDTHS = {"left": 12, "right": 20}
CONCEPTS, ONLY_LEFT, ONLY_RIGHT = 30, slice(0, 3), slice(3, 6)


def tiny_activations(path: Path, *, rows: int = 2048, shards: int = 3, held_out: int = 512) -> ActivationStore:
    """Rows of about two concepts each; `right` is forty times as large and far from zero."""
    generator = torch.Generator().manual_seed(5)
    left = torch.nn.functional.normalize(torch.randn(CONCEPTS, WIDTHS["left"], generator=generator), dim=1)
    right = torch.nn.functional.normalize(torch.randn(CONCEPTS, WIDTHS["right"], generator=generator), dim=1)
    left[ONLY_RIGHT], right[ONLY_LEFT] = 0, 0
    writer = StoreWriter(path, tuple(StoredSource(name, width, "float32") for name, width in WIDTHS.items()))
    for number in range(shards + 1):
        count = held_out if number == shards else rows // shards
        active = torch.rand(count, CONCEPTS, generator=generator) * (
            torch.rand(count, CONCEPTS, generator=generator) < 2 / CONCEPTS
        )
        noise = [0.01 * torch.randn(count, width, generator=generator) for width in WIDTHS.values()]
        values = {"left": active @ left + noise[0], "right": 40 * (active @ right + noise[1]) + 100}
        writer.add(values, {}, "held_out" if number == shards else "train")
    writer.finish(None, {})
    return ActivationStore.open(path)


def tiny_recipe(**changes: Any) -> Recipe:
    """A recipe that fits the tiny store in a second; `changes` replace whole sections' keys."""
    data: dict[str, Any] = {
        "name": "tiny",
        "crosscoder": {
            "features": 40,
            "exclusive_share": 0.1,
            "sparsity": {"k": 3, "anneal_share": 0.2},
            "dead_features": {"after_rows": 400, "k": 4},
        },
        "training": {"epochs": 3, "batch": 64, "learning_rate": 0.01, "checkpoint_every": 5},
    }
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return parse_recipe(data, origin="the test")
