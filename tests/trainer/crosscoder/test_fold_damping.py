"""Dominant directions are scaled down while training, and the finished crosscoder does not depend on it."""

import pytest
import torch

from tests.worlds.foreign_checkpoints import OWN_FIRST, STANDARD, active, random_crosscoder, raw_rows
from tests.worlds.tiny_activations import tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.fold_damping import undamped
from trainer.crosscoder.normalisation import Damping, Normaliser, centred_rms, damped
from trainer.recipe.recipe import parse_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter
from trainer.training.stage import train

WIDTH = 5


def lopsided(rows: int = 4000) -> torch.Tensor:
    """Rows whose variance is 96 along one direction, far from any axis, and 1 along each of four others; mean 7."""
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)))
    exact = torch.linalg.qr(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(3)))[0] * rows**0.5
    return (exact - exact.mean(dim=0)) * torch.tensor([96.0, 1, 1, 1, 1]).sqrt() @ turn.T + 7


def test_a_dominant_direction_keeps_the_share_allowed_and_the_whole_keeps_its_size():
    x = lopsided()
    normaliser = damped(centred_rms([x]), [x[:1000], x[1000:]], above=0.25)

    normal = normaliser(x)

    spread = torch.linalg.eigvalsh(torch.cov(normal.T)).flip(0)
    # Of 100 in all, 96 become 25; 29 are left, which are scaled up to the width again.
    assert spread.tolist() == pytest.approx([25 * 5 / 29, *[5 / 29] * 4], rel=0.02)
    torch.testing.assert_close(normaliser.back(normal), x, rtol=1e-4, atol=1e-3)


def test_without_a_dominant_direction_nothing_changes():
    x = torch.randn(2000, WIDTH)
    normaliser = centred_rms([x])

    assert damped(normaliser, [x], above=0.5) is normaliser


@pytest.mark.parametrize("groups", [STANDARD, OWN_FIRST])
@pytest.mark.parametrize("rank_by", ["largest_norm", "sum_of_norms", "activation"])
@pytest.mark.parametrize("kind", ["threshold", "row_k"])
def test_the_folded_crosscoder_fires_and_rebuilds_as_the_damped_one(groups, rank_by, kind):
    fields = {"threshold": 1.1} if kind == "threshold" else {"row_k": {group.name: 2 for group in groups}}
    crosscoder = random_crosscoder(groups, rank_by=rank_by, **fields)
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -1.0, 0.5]]), dim=1)
    crosscoder.normaliser["right"] = Normaliser(torch.ones(4), 0.5, Damping(direction, torch.tensor([0.2])))
    rows = raw_rows(crosscoder, count=40)

    plain = undamped(crosscoder)

    assert all(one.damping is None for one in plain.normaliser.values())
    ours, theirs = (one.encode(rows, compute=torch.float32) for one in (plain, crosscoder))
    assert 0 < len(theirs.row) < 40 * crosscoder.features
    assert active(ours) == active(theirs)
    for source, wanted in crosscoder.decode(theirs).items():
        torch.testing.assert_close(plain.decode(ours)[source], wanted, rtol=1e-4, atol=1e-4)


def test_a_run_with_damping_leaves_a_crosscoder_for_activations_as_they_are(tmp_path):
    writer = StoreWriter(tmp_path / "store", (StoredSource("a", WIDTH, "float32"), StoredSource("b", 8, "float32")))
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 3000), ("held_out", 1000)):
        writer.add({"a": lopsided(count), "b": torch.randn(count, 8, generator=generator)}, {}, split)
    writer.finish(None, {})
    store, folder = ActivationStore.open(tmp_path / "store"), RunFolder(tmp_path / "run")
    folder.path.mkdir()

    trained = train(tiny_recipe(crosscoder={"damp_above": 0.3}), store, folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)
    (block,) = store.blocks("held_out")
    codes = loaded.encode(block.rows)
    assert len(codes.row) / codes.rows == pytest.approx(3, abs=0.5)
    assert torch.equal(trained.encode(block.rows).feature, codes.feature)
    truth, rebuilt = block.rows["a"], loaded.decode(codes)["a"]
    assert (rebuilt - truth).square().sum() < 0.4 * (truth - truth.mean(dim=0)).square().sum()


def test_recipes_without_damping_make_the_runs_they_made_before_there_was_any():
    without, asked = ({"name": "mine"}, {"name": "mine", "crosscoder": {"damp_above": 0.1}})

    plain = parse_recipe(without, origin="the test")

    assert "damp_above" not in plain.identity()["crosscoder"]
    assert parse_recipe(asked, origin="the test").fingerprint() != plain.fingerprint()
