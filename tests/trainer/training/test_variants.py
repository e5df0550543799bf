"""Every variant and every kind of sparsity trains, and encodes the same after saving and loading."""

import math

import pytest
import torch

from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.kernels.jumprelu import jumprelu
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter
from trainer.training.stage import train
from trainer.training.trainer import Training


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    """Four layers of one model, each a linear map of the same sparse activations."""
    generator = torch.Generator().manual_seed(2)
    path = tmp_path_factory.mktemp("layers") / "store"
    writer = StoreWriter(path, tuple(StoredSource(name, 8, "float32") for name in ("r0", "r1", "m0", "m1")))
    directions = [torch.randn(16, 8, generator=generator) for _ in range(4)]
    for split, rows in (("train", 1600), ("held_out", 400)):
        active = torch.rand(rows, 16, generator=generator) * (torch.rand(rows, 16, generator=generator) < 0.1)
        writer.add(dict(zip(("r0", "r1", "m0", "m1"), (active @ d for d in directions), strict=True)), {}, split)
    writer.finish(None, {})
    return ActivationStore.open(path)


LAYERED = {"inputs": ("r0", "r1"), "targets": ("m0", "m1")}
VARIANTS = [
    {"variant": "sae", "inputs": ("r0",), "targets": ("r0",)},
    {"variant": "standard"},
    {"variant": "dfc", "subsets": (("r0", "r1"),)},
    {"variant": "designated_shared"},
    {"variant": "weakly_causal", "inputs": ("r0", "r1"), "targets": ("r0", "r1")},
    {"variant": "strictly_causal"} | LAYERED,
    {"variant": "clt"} | LAYERED,
    {"variant": "transcoder"} | LAYERED,
    {"variant": "local_window"},
    {"variant": "custom", "groups": ({"name": "g", "features": 20, "reads": ("r0",), "writes": ("r1", "m0")},)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant["variant"])
def test_every_variant_learns_and_encodes_the_same_after_loading(store, tmp_path, variant):
    recipe = tiny_recipe(crosscoder=variant, training={"epochs": 8})
    folder = RunFolder(tmp_path)
    training = Training(recipe, store)
    first = float("nan")
    for rows in training.remaining_batches():
        metrics = training.run_step(rows)
        first = metrics.get("loss", first) if math.isnan(first) else first
    assert metrics["loss"] < first

    trained = train(recipe, store, folder, Progress(folder, "tiny"))
    loaded = Crosscoder.load(folder.path)
    block = next(iter(store.blocks("held_out")))
    before, after = trained.encode(block.rows), loaded.encode(block.rows)
    assert torch.equal(before.feature, after.feature)
    assert torch.equal(before.value, after.value)
    rebuilt = loaded.decode(after)
    assert rebuilt.keys() == set(loaded.targets)
    for source in loaded.targets:
        truth = block.rows[source]
        assert (rebuilt[source] - truth).square().sum() < 0.8 * (truth - truth.mean(dim=0)).square().sum()


@pytest.mark.parametrize(
    "sparsity",
    [
        {"kind": "topk", "k": 3},
        {"kind": "l1", "coefficient": 0.3},
        {"kind": "l1", "coefficient": 0.45, "penalty_norm": "concatenation"},
        {"kind": "jumprelu", "coefficient": 0.3, "bandwidth": 0.5},
        {"kind": "batch_topk", "k": 3, "budget": "joint"},
    ],
    ids=lambda sparsity: "-".join(map(str, sparsity.values())),
)
def test_every_sparsity_learns_and_keeps_few_features(tmp_path, sparsity):
    store = tiny_activations(tmp_path / "store", rows=6144)
    recipe = tiny_recipe(crosscoder={"sparsity": sparsity}, training={"epochs": 6, "decay_share": 0.2})
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()

    crosscoder = train(recipe, store, folder, Progress(folder, "tiny"))

    block = next(iter(store.blocks("held_out")))
    codes = crosscoder.encode(block.rows)
    assert len(codes.row) / codes.rows < 8
    for source, rebuilt in crosscoder.decode(codes).items():
        truth = block.rows[source]
        assert (rebuilt - truth).square().sum() < 0.6 * (truth - truth.mean(dim=0)).square().sum()
    if sparsity["kind"] == "topk":
        assert codes.row.bincount().max() <= sum(crosscoder.row_k.values())


def test_a_tied_decoder_stays_one_parameter_through_training_and_files(tmp_path):
    path = tmp_path / "store"
    writer = StoreWriter(path, (StoredSource("a", 6, "float32"), StoredSource("b", 6, "float32")))
    for split in ("train", "held_out"):
        writer.add({"a": torch.randn(512, 6), "b": torch.randn(512, 6)}, {}, split)
    writer.finish(None, {})
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    recipe = tiny_recipe(crosscoder={"variant": "designated_shared"})

    train(recipe, ActivationStore.open(path), folder, Progress(folder, "tiny"))

    loaded = Crosscoder.load(folder.path)
    assert torch.equal(loaded.weights["decoder.a.shared"], loaded.weights["decoder.b.shared"])
    assert not torch.equal(loaded.weights["decoder.a.free"], loaded.weights["decoder.b.free"])


def test_diff_sae_rebuilds_the_difference_of_two_sources(tmp_path):
    path = tmp_path / "store"
    writer = StoreWriter(path, (StoredSource("base", 8, "float32"), StoredSource("chat", 8, "float32")))
    generator = torch.Generator().manual_seed(0)
    extra = torch.randn(6, 8, generator=generator)
    for split, rows in (("train", 2048), ("held_out", 512)):
        base = torch.randn(rows, 8, generator=generator) * 10
        new = torch.rand(rows, 6, generator=generator) * (torch.rand(rows, 6, generator=generator) < 0.2)
        writer.add({"base": base, "chat": base + new @ extra}, {}, split)
    writer.finish(None, {})
    store, folder = ActivationStore.open(path), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    recipe = tiny_recipe(crosscoder={"variant": "diff_sae"}, training={"epochs": 12})

    crosscoder = train(recipe, store, folder, Progress(folder, "tiny"))

    block = next(iter(store.blocks("held_out")))
    truth = block.rows["chat"] - block.rows["base"]
    rebuilt = Crosscoder.load(folder.path).decode(crosscoder.encode(block.rows))["chat-minus-base"]
    assert (rebuilt - truth).square().sum() < 0.4 * (truth - truth.mean(dim=0)).square().sum()


def test_jumprelu_keeps_inputs_above_its_threshold_which_gets_the_straight_through_gradient():
    x = torch.tensor([[0.4, 2.0], [1.2, 0.9]], requires_grad=True)
    log_threshold = torch.log(torch.tensor([0.5, 1.0])).requires_grad_()

    out = jumprelu(x, log_threshold, 0.5)
    out.sum().backward()

    assert out.tolist() == [[0.0, 2.0], [pytest.approx(1.2), 0.0]]
    assert x.grad.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    # Within 0.25 of the threshold: 0.4 (of 0.5) and 0.9 (of 1.0). d/dlog = threshold * (-threshold / bandwidth).
    assert log_threshold.grad.tolist() == [pytest.approx(-0.5), pytest.approx(-2.0)]


def test_a_mean_over_reads_does_not_halve_an_exclusive_group(tmp_path):
    store = tiny_activations(tmp_path / "store")
    summed = Training(tiny_recipe(crosscoder={"aggregation": "sum"}), store).crosscoder
    averaged = Training(tiny_recipe(crosscoder={"aggregation": "mean"}), store).crosscoder
    rows = summed.normalise(next(iter(store.blocks("train"))).rows)

    shared, left = summed.groups[0], summed.groups[1]
    torch.testing.assert_close(averaged.pre_activations(shared, rows) * 2, summed.pre_activations(shared, rows))
    torch.testing.assert_close(averaged.pre_activations(left, rows), summed.pre_activations(left, rows))
