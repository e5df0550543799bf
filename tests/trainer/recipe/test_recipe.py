"""Recipes reject unknown keys with a suggestion; overrides, sweeps, variants and fingerprints."""

from pathlib import Path

import pytest

from trainer.device import pick_device
from trainer.errors import RecipeError, UsageError
from trainer.recipe.recipe import load_recipe, parse_recipe


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: x", r"nmae: unknown key\. Did you mean 'name'\?"),
        ("name: x\ncrosscoder: {sparsity: {kk: 3}}", r"crosscoder\.sparsity\.kk: unknown key\. Did you mean 'k'\?"),
        (
            "name: x\nsources: [{name: a, modle: b, layer: 1}]",
            r"sources\.0\.modle: unknown key\. Did you mean 'model'\?",
        ),
        (
            "name: x\ncorpus: {mix: [{path: a, colum: b}]}",
            r"corpus\.mix\.0\.colum: unknown key\. Did you mean 'column'\?",
        ),
        ("name: x\ntraining: {zzz: 1}", r"training\.zzz: unknown key\. Known keys: epochs, batch"),
        ("name: x\ntraining: {batch: -1}", r"training\.batch: Input should be greater than 0"),
        ("name: x\ncorpus: {mix: [{share: 1}]}", "give either `dataset` or `path`"),
        ("name: x\nsources: [{name: a, model: b, layer: 1}, {name: a, model: c, layer: 1}]", "same name"),
        ("name: ../../etc", "String should match pattern"),
        ("- a list", "holds no recipe"),
        ("name: [unclosed", "not readable YAML"),
    ],
)
def test_an_invalid_recipe_is_rejected_with_the_cause_and_the_nearest_known_key(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, text))


def test_a_missing_recipe_is_reported_with_the_demo_as_an_example(tmp_path):
    with pytest.raises(RecipeError, match=r"No recipe at .*demo\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_overrides_address_nested_keys_and_list_entries(tmp_path):
    path = write_recipe(tmp_path, "name: x\nsources: [{name: a, model: b, layer: 1}]")

    recipe = load_recipe(path, ("crosscoder.sparsity.k=7", "sources.0.layer=3", "training.learning_rate=1e-3"))

    assert recipe.crosscoder.sparsity.k == 7
    assert recipe.sources[0].layer == 3
    assert recipe.training.learning_rate == 0.001


@pytest.mark.parametrize(
    "override",
    ["crosscoder.features", "=3", "name.deeper=1", "sources.5.layer=1", "sources.x=1", "name=[unclosed"],
)
def test_an_override_that_cannot_be_applied_is_rejected(tmp_path, override):
    path = write_recipe(tmp_path, "name: x\nsources: [{name: a, model: b, layer: 1}]")
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(path, (override,))


def test_a_resolved_recipe_reads_back_with_the_same_fingerprint(tmp_path):
    recipe = parse_recipe({"name": "x", "sweep": {"training.seed": [0, 1]}}, origin="here")

    again = load_recipe(write_recipe(tmp_path, recipe.to_yaml()))

    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()
    assert recipe.fingerprint() != parse_recipe({"name": "x", "training": {"seed": 1}}, origin="here").fingerprint()


def test_a_sweep_gives_a_complete_recipe_for_every_combination():
    recipe = parse_recipe(
        {"name": "x", "sweep": {"training.seed": [0, 1], "crosscoder.features": [64, 128]}}, origin="here"
    )

    found = [(variant.training.seed, variant.crosscoder.features, variant.sweep) for variant in recipe.variants()]

    assert found == [(0, 64, {}), (0, 128, {}), (1, 64, {}), (1, 128, {})]


def test_the_diff_sae_variant_differs_only_in_what_it_must():
    plain = {"name": "x", "analysis": {"same_space": [["a", "b"]]}, "crosscoder": {"features": 64, "targets": ["b"]}}
    recipe = parse_recipe(plain | {"baselines": {"diff_sae": True}}, origin="here")

    first, diff_sae = recipe.variants()

    assert first == recipe
    assert (diff_sae.crosscoder.variant, diff_sae.crosscoder.features, diff_sae.training) == (
        "diff_sae",
        64,
        recipe.training,
    )
    assert diff_sae.analysis.same_space == "auto" and diff_sae.crosscoder.targets == ()
    assert diff_sae.variants() == (diff_sae,) and diff_sae.fingerprint() != recipe.fingerprint()
    assert len(parse_recipe(plain, origin="here").variants()) == 1


def test_default_baselines_do_not_change_the_fingerprint():
    explicit = parse_recipe({"name": "x", "baselines": {"lens": True}}, origin="here")

    assert "baselines" not in explicit.identity()
    assert (
        parse_recipe({"name": "x", "baselines": {"lens": False}}, origin="here").fingerprint() != explicit.fingerprint()
    )


def test_the_demo_recipe_is_valid():
    recipe = load_recipe(Path(__file__).parents[3] / "trainer" / "recipes" / "demo.yaml")

    assert [source.name for source in recipe.sources] == ["smollm2", "gemma3"]
    assert recipe.harvest.rows == 400_000
    assert (recipe.crosscoder.features, recipe.crosscoder.sparsity.k, recipe.training.epochs) == (8192, 32, 2)


def test_the_fine_tune_recipe_compares_one_layer_of_two_models():
    recipe = load_recipe(Path(__file__).parents[3] / "trainer" / "recipes" / "finetune.yaml")

    assert recipe.corpus is not None and recipe.calibration is not None
    assert [source.name for source in recipe.sources] == ["base", "tuned"]
    assert len({source.layer for source in recipe.sources}) == 1
    assert sum(part.share for part in recipe.corpus.mix) == pytest.approx(1)


def test_an_unavailable_device_is_rejected_with_the_remedy():
    with pytest.raises(UsageError, match="Use `auto`"):
        pick_device("cuda:99")


def test_old_names_of_renamed_keys_are_accepted_and_keep_the_fingerprint():
    former = {"name": "x", "analysis": {"verdict": {"readout_ratio": 0.4, "readout_ratio_same_space": 0.8}}}
    present = {"name": "x", "analysis": {"verdict": {"readout_contrast": 0.4, "readout_contrast_same_space": 0.8}}}

    one, other = parse_recipe(former, origin="here"), parse_recipe(present, origin="here")

    assert one == other
    assert one.identity()["analysis"]["verdict"]["readout_ratio"] == 0.4
    # The fingerprint from before the keys were renamed.
    assert load_recipe(Path(__file__).parents[3] / "trainer" / "recipes" / "demo.yaml").fingerprint() == "36dbf40b"


def test_a_key_under_both_names_is_rejected():
    both = {"name": "x", "analysis": {"verdict": {"readout_ratio": 0.4, "readout_contrast": 0.4}}}

    with pytest.raises(RecipeError, match=r"readout_ratio: unknown key. Did you mean 'readout_contrast'"):
        parse_recipe(both, origin="here")
