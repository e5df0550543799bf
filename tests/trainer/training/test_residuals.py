"""Residual dictionaries: what they are trained on, what they find, and that nothing is lost when they are folded."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.worker.direction import read_direction
from tests.worlds.pretended_device import DEVICE, PretendedDevice
from tests.worlds.related import CONCEPTS, WIDTHS, related_sources
from tests.worlds.tiny_activations import tiny_recipe
from trainer.analysis.claims.claims import Ownership
from trainer.analysis.claims.evidence import ClaimedFeatures
from trainer.analysis.per_feature.decoder_norms import decoder_norms
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.sample import sample_rows
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError, RecipeError
from trainer.evaluation.reconstruction import evaluate
from trainer.interchange import antebe, ckkissane, crosscode, dictionary_learning, saelens, sparsify
from trainer.recipe.fitting import CrosscoderRecipe
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter
from trainer.training.checkpoint import latest
from trainer.training.inputs import fit_residuals
from trainer.training.stage import fingerprint_of, train, train_together
from trainer.training.trainer import Training

CPU = torch.device("cpu")


def recipe(**changes):
    crosscoder = {"variant": "residual", "features": 16, "sparsity": {"k": 1}} | changes.pop("crosscoder", {})
    return tiny_recipe(crosscoder=crosscoder, **changes)


def fit(one, store, path) -> Crosscoder:
    path.mkdir(parents=True, exist_ok=True)
    return train(one, store, RunFolder(path), Progress(RunFolder(path), "tiny"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return related_sources(tmp_path_factory.mktemp("related") / "store")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run's folder with trained residual dictionaries."""
    path = tmp_path_factory.mktemp("run")
    fit(recipe(training={"epochs": 8, "learning_rate": 0.02}), world.store, path)
    return RunFolder(path)


def held_out(store):
    return next(iter(store.blocks("held_out", rows=4096))).rows


@pytest.mark.parametrize(
    "widths", [{"a": 6, "b": 9}, {"a": 9, "b": 6}, {"a": 5, "b": 5}, {"a": 4, "b": 7, "c": 3}], ids=str
)
def test_the_residual_of_a_linear_relation_is_zero_and_that_of_an_independent_source_is_all_of_it(tmp_path, widths):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3000, sum(widths.values()), generator=generator)
    first = base[:, : widths["a"]] * 5 + 40
    others = {name: base[:, -width:] for name, width in widths.items() if name not in ("a", "b")}
    told = torch.cat([first, *others.values()], dim=1)
    second = told @ torch.randn(told.shape[1], widths["b"], generator=generator) + 7
    writer = StoreWriter(tmp_path, tuple(StoredSource(name, width, "float32") for name, width in widths.items()))
    writer.add({"a": first, "b": second} | others, {}, "train")
    writer.add({"a": first, "b": second} | others, {}, "held_out")
    writer.finish(None, {})

    residuals = fit_residuals(CrosscoderRecipe(variant="residual"), ActivationStore.open(tmp_path), CPU)
    left = residuals({"a": first, "b": second} | others)

    # Normalised activations have a root mean square of 1; the ridge leaves about a thousandth.
    assert left["b"].square().mean().sqrt() < 0.02
    independent = torch.randn(3000, widths["b"], generator=generator)
    writer = StoreWriter(tmp_path / "other", tuple(StoredSource(n, w, "float32") for n, w in widths.items()))
    writer.add({"a": first, "b": independent} | others, {}, "train")
    writer.finish(None, {})
    residuals = fit_residuals(CrosscoderRecipe(variant="residual"), ActivationStore.open(tmp_path / "other"), CPU)
    left = residuals({"a": first, "b": independent} | others)
    assert left["b"].square().mean().sqrt() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("owner", WIDTHS)
def test_a_concept_that_one_source_has_comes_back_under_it_and_not_under_the_other(world, trained, owner):
    crosscoder = Crosscoder.load(trained.path)
    codes = crosscoder.encode(held_out(world.store), compute=torch.float32)
    activations = torch.zeros(codes.rows, crosscoder.features)
    activations[codes.row, codes.feature] = codes.value
    owners = np.array(Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe()).owner)
    for concept in range(CONCEPTS):
        magnitude = world.held_out[owner][:, concept]
        joined = torch.corrcoef(torch.cat([activations.T, magnitude[None]]))[-1, :-1].nan_to_num()
        best = int(joined.argmax())

        assert joined[best] > 0.95 and owners[best] == owner
        assert joined[torch.from_numpy(owners != owner)].max() < 0.3
        direction = read_direction(trained, best, owner).vector
        cosine = torch.nn.functional.cosine_similarity(direction, world.directions[owner][concept], dim=0)
        assert cosine > 0.95, "a direction is one of the model's own space"
        other = next(name for name in WIDTHS if name != owner)
        assert not read_direction(trained, best, other).writes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalisation": "median_norm"},
        {"damp_above": 0.2},
        {"aggregation": "mean"},
        {"sparsity": {"k": 1, "rank_by": "sum_of_norms"}},
        {"sparsity": {"k": 1, "rank_by": "activation"}},
        {"sparsity": {"k": 2, "kind": "topk"}},
        {"sparsity": {"k": 2, "kind": "topk"}, "damp_above": 0.2},
        {"sparsity": {"kind": "jumprelu", "coefficient": 0.3}},
        {"sparsity": {"kind": "l1", "coefficient": 0.3}},
    ],
    ids=str,
)
def test_a_saved_dictionary_fires_on_the_sources_as_it_was_trained_on_their_residuals(world, settings):
    training = Training(recipe(crosscoder=settings, training={"epochs": 2}), world.store)
    for rows in training.remaining_batches():
        training.run_step(rows)
    training.set_thresholds()
    raw = held_out(world.store)
    trained = training.crosscoder.encode_normalised(training.normalise(raw), compute=torch.float32)

    saved = training.trained()
    found = saved.encode(raw, compute=torch.float32)

    pairs = [set(zip(one.row.tolist(), one.feature.tolist(), strict=True)) for one in (found, trained)]
    # An activation within rounding of its threshold may fall on either side.
    assert len(pairs[0] ^ pairs[1]) <= 0.002 * len(pairs[1])
    assert len(pairs[1]) > 100
    rebuilt, residuals = saved.reconstruct(raw, found), training.crosscoder.decode(trained)
    for source, x in raw.items():
        normal = saved.normaliser[source](x)
        predicted = saved.predictions[source](saved.normalise(raw))
        expected = saved.normaliser[source].denormalise(predicted + residuals[source])
        assert (rebuilt[source] - expected).abs().median() < 1e-3 * x.std()
        error = (normal - saved.normaliser[source](rebuilt[source])).square().sum()
        assert error < (normal - predicted).square().sum(), "features explain part of what is left"


def test_a_claim_has_the_weights_on_either_source_and_the_threshold_that_it_fires_by(world, trained, tmp_path):
    crosscoder = Crosscoder.load(trained.path)
    sample = sample_rows(world.store, crosscoder)
    with CodeSpool(tmp_path, crosscoder.features) as codes:
        for block in world.store.blocks():
            codes.append(crosscoder.encode(block.rows, compute=torch.float32))
        codes.flush()
        ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe())
        features = np.flatnonzero(ownership.claims & (codes.counts > 50))
        claimed = ClaimedFeatures.of_crosscoder(crosscoder, features, ownership.holds, codes, sample)
    rows = [crosscoder.normalise(block.rows) for block in world.store.blocks()]
    told = sum(torch.cat([part[s] for part in rows]) @ claimed.encoder[s].T for s in crosscoder.sources)

    assert len(features) >= 2 * CONCEPTS and claimed.holds.sum(axis=1).tolist() == [1] * len(features)
    for number, fired in enumerate(claimed.firings):
        mine = sample.select(np.flatnonzero((told[:, number] >= claimed.threshold[number] - 1e-4).numpy()))
        # An activation within rounding of the threshold may fall on either side.
        assert len(np.setxor1d(mine, fired)) <= 0.01 * len(fired)


def test_groups_are_named_after_what_is_given_and_each_has_k_of_its_own(tmp_path):
    world = related_sources(tmp_path / "store", {"a": 8, "b": 10, "c": 6})
    crosscoder = fit(recipe(crosscoder={"sparsity": {"k": 2}}, training={"epochs": 4}), world.store, tmp_path / "run")

    groups = crosscoder.groups
    assert [g.name for g in groups] == ["a-given-others", "b-given-others", "c-given-others"]
    assert [(g.features, g.reads, g.writes) for g in groups] == [(16, ("a", "b", "c"), (name,)) for name in "abc"]
    table = evaluate(world.store, crosscoder, Progress(RunFolder(tmp_path), "t"))
    measures = {(m["source"], m["measure"]): m["value"] for m in table}
    for group in groups:
        assert measures[None, f"l0.{group.name}"] == pytest.approx(2, abs=0.4)
    for name in "abc":
        assert 0 < measures[name, "variance_predicted"] < measures[name, "variance_explained"] <= 1


def test_only_the_targets_have_a_dictionary_and_only_the_inputs_are_given(tmp_path):
    world = related_sources(tmp_path / "store", {"a": 8, "b": 10, "c": 6}, rows=2048)
    one = recipe(crosscoder={"inputs": ["a", "b"], "targets": ["c"]}, training={"epochs": 1})

    (group,) = fit(one, world.store, tmp_path / "run").groups

    assert (group.reads, group.writes) == (("a", "b", "c"), ("c",))
    assert Crosscoder.load(tmp_path / "run").predictions["c"].given == ("a", "b")


def test_residuals_are_taken_where_the_training_is(world):
    raw, one = held_out(world.store), recipe().crosscoder
    expected = fit_residuals(one, world.store, CPU)

    with PretendedDevice() as pretended:
        found = fit_residuals(one, world.store, DEVICE)
        here = {name: x.cpu() for name, x in found(raw).items()}

    assert pretended.away["aten.mm.default"] > 2
    for target, x in expected(raw).items():
        torch.testing.assert_close(here[target], x, rtol=1e-4, atol=1e-4)


def test_seeds_side_by_side_are_those_trained_alone_and_resume_to_the_bit(world, tmp_path):
    runs = [(recipe(training={"seed": seed}), RunFolder(tmp_path / f"together-{seed}")) for seed in range(3)]
    for _, folder in runs:
        folder.path.mkdir()
    train_together(runs, world.store, Progress(runs[0][1], "tiny"))
    for seed, (one, folder) in enumerate(runs):
        fit(one, world.store, tmp_path / f"alone-{seed}")
        alone, together = (
            load_file(path / "crosscoder.safetensors") for path in (tmp_path / f"alone-{seed}", folder.path)
        )
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[name], together[name]) for name in alone)

    one, folder = recipe(), RunFolder(tmp_path / "stopped")
    folder.path.mkdir()
    stopped = Training(one, world.store)
    for rows in stopped.remaining_batches():
        stopped.run_step(rows)
        if stopped.step == 10:
            stopped.save(folder.checkpoints, fingerprint_of(one, world.store))
            break
    fit_residuals.cache_clear()
    assert latest(folder.checkpoints, fingerprint_of(one, world.store)).step == 10
    fit(one, world.store, folder.path)
    resumed, whole = (load_file(path / "crosscoder.safetensors") for path in (folder.path, tmp_path / "alone-0"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_saved_dictionary_is_the_same_after_loading(world, trained):
    again = Crosscoder.load(trained.path)
    raw = held_out(world.store)
    residuals = fit_residuals(recipe().crosscoder, world.store, CPU)

    for target, prediction in residuals.predictions.items():
        assert torch.equal(again.predictions[target].weight, prediction.weight)
        assert again.predictions[target].given == prediction.given
    again.save(trained.path / "again")
    once_more = Crosscoder.load(trained.path / "again")
    found, expected = (one.reconstruct(raw, one.encode(raw)) for one in (once_more, again))
    assert all(torch.equal(found[name], expected[name]) for name in raw)


def test_a_description_of_before_has_no_predictions_and_reconstructs_what_its_decoders_write(world, tmp_path):
    crosscoder = fit(tiny_recipe(training={"epochs": 1}), world.store, tmp_path)
    path = tmp_path / "crosscoder.json"
    description = json.loads(path.read_text())
    assert description.pop("predictions") == {}
    path.write_text(json.dumps(description))

    loaded, raw = Crosscoder.load(tmp_path), held_out(world.store)

    codes = loaded.encode(raw)
    assert loaded.predictions == {} and loaded.predicted(raw) == {}
    assert all(torch.equal(x, loaded.decode(codes)[name]) for name, x in loaded.reconstruct(raw, codes).items())
    assert torch.equal(codes.value, crosscoder.encode(raw).value)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda _, t: t.pop("prediction.left"), "prediction.left"),
        (lambda _, t: t.pop("prediction_offset.right"), "prediction_offset.right"),
        (lambda _, t: t.update({"prediction.left": torch.zeros(3, 4)}), r"'prediction.left' has shape \(3, 4\)"),
        (lambda d, _: d.pop("predictions"), "prediction"),
        (lambda d, _: d["predictions"]["left"].update(given=["nobody"]), "nobody"),
        (lambda d, _: d["predictions"].update(nobody={"given": ["left"]}), "nobody"),
        (lambda d, _: d.update(predictions=["left"]), "damaged"),
    ],
)
def test_damaged_predictions_are_refused(trained, tmp_path, change, fact):
    for name in ("crosscoder.json", "crosscoder.safetensors"):
        shutil.copy(trained.path / name, tmp_path / name)
    description = json.loads((tmp_path / "crosscoder.json").read_text())
    tensors = load_file(tmp_path / "crosscoder.safetensors")
    change(description, tensors)
    (tmp_path / "crosscoder.json").write_text(json.dumps(description))
    save_file(tensors, tmp_path / "crosscoder.safetensors")

    with pytest.raises(CrosscoderError, match=fact):
        Crosscoder.load(tmp_path)


@pytest.mark.parametrize("tool", [antebe, ckkissane, crosscode, dictionary_learning, saelens, sparsify])
def test_other_tools_cannot_hold_a_prediction(trained, tmp_path, tool):
    with pytest.raises(CrosscoderError, match="'left' is reconstructed from right and the features together"):
        tool.write(Crosscoder.load(trained.path), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"inputs": ["left"], "targets": ["left"]}, "compares sources"),
        ({"inputs": ["left"]}, "nothing to predict left from"),
        ({"targets": ["nobody"]}, "no source is named 'nobody'"),
    ],
)
def test_a_target_without_another_source_is_refused(world, settings, fact):
    with pytest.raises(RecipeError, match=fact):
        Training(recipe(crosscoder=settings), world.store)
