"""Dominant directions are damped during training, and the saved crosscoder works on undamped activations."""

import pytest
import torch

from tests.worlds.foreign_checkpoints import OWN_FIRST, STANDARD, active, random_crosscoder, raw_rows
from tests.worlds.tiny_activations import tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.fold_damping import fold_damping
from trainer.crosscoder.normalisation import Damping, Normaliser, centred_rms, damp_dominant_directions
from trainer.recipe.recipe import parse_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter
from trainer.training.stage import train

WIDTH = 5


def anisotropic_rows(rows: int = 4000) -> torch.Tensor:
    """Rows with variance 96 along one direction, not near any axis, and 1 along each of four others; mean 7."""
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)))
    exact = torch.linalg.qr(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(3)))[0] * rows**0.5
    return (exact - exact.mean(dim=0)) * torch.tensor([96.0, 1, 1, 1, 1]).sqrt() @ rotation.T + 7


def test_a_dominant_direction_is_damped_to_the_allowed_share_and_total_variance_stays():
    x = anisotropic_rows()
    normaliser = damp_dominant_directions(centred_rms([x]), [x[:1000], x[1000:]], above=0.25)

    normal = normaliser(x)

    variances = torch.linalg.eigvalsh(torch.cov(normal.T)).flip(0)
    # Of a variance of 100, 96 become 25; the remaining 29 are scaled up to the width.
    assert variances.tolist() == pytest.approx([25 * 5 / 29, *[5 / 29] * 4], rel=0.02)
    torch.testing.assert_close(normaliser.denormalise(normal), x, rtol=1e-4, atol=1e-3)


def test_without_a_dominant_direction_nothing_changes():
    x = torch.randn(2000, WIDTH)
    normaliser = centred_rms([x])

    assert damp_dominant_directions(normaliser, [x], above=0.5) is normaliser


@pytest.mark.parametrize("groups", [STANDARD, OWN_FIRST])
@pytest.mark.parametrize("rank_by", ["largest_norm", "sum_of_norms", "activation"])
@pytest.mark.parametrize("kind", ["threshold", "row_k"])
def test_the_folded_crosscoder_encodes_and_decodes_like_the_damped_one(groups, rank_by, kind):
    fields = {"threshold": 1.1} if kind == "threshold" else {"row_k": {group.name: 2 for group in groups}}
    crosscoder = random_crosscoder(groups, rank_by=rank_by, **fields)
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -1.0, 0.5]]), dim=1)
    crosscoder.normaliser["right"] = Normaliser(torch.ones(4), 0.5, Damping(direction, torch.tensor([0.2])))
    rows = raw_rows(crosscoder, count=40)

    folded = fold_damping(crosscoder)

    assert all(normaliser.damping is None for normaliser in folded.normaliser.values())
    found, expected = (one.encode(rows, compute=torch.float32) for one in (folded, crosscoder))
    assert 0 < len(expected.row) < 40 * crosscoder.features
    assert active(found) == active(expected)
    for source, reconstruction in crosscoder.decode(expected).items():
        torch.testing.assert_close(folded.decode(found)[source], reconstruction, rtol=1e-4, atol=1e-4)


def test_a_run_with_damping_saves_a_crosscoder_for_undamped_activations(tmp_path):
    writer = StoreWriter(tmp_path / "store", (StoredSource("a", WIDTH, "float32"), StoredSource("b", 8, "float32")))
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 3000), ("held_out", 1000)):
        writer.add({"a": anisotropic_rows(count), "b": torch.randn(count, 8, generator=generator)}, {}, split)
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


def test_recipes_without_damping_keep_the_identity_they_had_before_it_existed():
    without, with_damping = ({"name": "mine"}, {"name": "mine", "crosscoder": {"damp_above": 0.1}})

    plain = parse_recipe(without, origin="the test")

    assert "damp_above" not in plain.identity()["crosscoder"]
    assert parse_recipe(with_damping, origin="the test").fingerprint() != plain.fingerprint()
