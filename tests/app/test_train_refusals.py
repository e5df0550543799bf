"""A store that cannot be trained on is refused by the command, with the reason, before a step is made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from app.cli import main
from tests.worlds.tiny_activations import tiny_activations
from trainer.run.checksum import sha256_of
from trainer.store.store import StoredSource, StoreWriter

RECIPE = "name: mine\ncrosscoder: {features: 40, exclusive_share: 0.1, sparsity: {k: 3}}\ntraining: {batch: 64}\n"


def edit(store: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest."""
    manifest = json.loads((store / "manifest.json").read_text())
    change(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))


def rewrite(store: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the second shard, and its checksum with them."""
    shard = store / "shard-00001.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    edit(store, lambda manifest: manifest["shards"][1].update(sha256=sha256_of(shard)))


def flip_a_bit(store: Path) -> None:
    shard = store / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def leave_one_source(store: Path) -> None:
    for old in store.iterdir():
        old.unlink()
    writer = StoreWriter(store, (StoredSource("left", 12, "float32"),))
    for split in ("train", "held_out"):
        writer.add({"left": torch.randn(200, 12)}, {}, split)
    writer.finish(None, {})


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors["right"][3, 1], tensors["right"][8, 0] = float("nan"), float("inf")


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (
        lambda store: (store / "shard-00002.safetensors").unlink(),
        "shard-00002.safetensors is missing, but the manifest lists it.",
    ),
    "wrong checksum": (flip_a_bit, "shard-00001.safetensors: checksum differs from the manifest."),
    "wrong width": (
        lambda store: rewrite(store, lambda tensors: tensors.update(left=tensors["left"][:, :11].contiguous())),
        "'left' has shape (682, 11), expected (682, 12).",
    ),
    "NaN rows": (
        lambda store: rewrite(store, spoil),
        "2 of 682 rows of 'right' are NaN or infinite.",
    ),
    "a source missing in a shard": (
        lambda store: rewrite(store, lambda tensors: tensors.pop("right")),
        "has no tensor 'right'; it holds left.",
    ),
    "a source too few": (leave_one_source, "dfc compares sources, and there is only left."),
    "truncated shard": (
        lambda store: (store / "shard-00000.safetensors").write_bytes(b"\0" * 50),
        "shard-00000.safetensors is not a complete safetensors file",
    ),
    "no manifest": (lambda store: (store / "manifest.json").unlink(), "manifest.json is missing."),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_store_is_refused_with_the_reason_before_training_starts(tmp_path: Path, own_home: Path, what: str):
    damage, message = REFUSALS[what]
    store = tiny_activations(tmp_path / "store").path
    damage(store)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    outcome = CliRunner().invoke(main, ["train", str(recipe), "--activations", str(store)])

    assert outcome.exit_code in (1, 2), outcome.output
    assert message in outcome.stderr
    assert "Traceback" not in outcome.output
    for folder in (own_home / "runs").glob("*"):  # a store that cannot be read at all makes no run
        known = {"recipe.yaml", "activations.json", "progress.json", "log.txt", ".lock"}  # nothing trained
        assert {path.name for path in folder.iterdir()} <= known


def test_the_same_store_undamaged_is_trained_on(tmp_path: Path, own_home: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    outcome = CliRunner().invoke(
        main, ["train", str(recipe), "--activations", str(tiny_activations(tmp_path / "s").path)]
    )

    assert outcome.exit_code == 0, outcome.output
    assert (Path(outcome.stdout.strip()) / "crosscoder.json").is_file()
