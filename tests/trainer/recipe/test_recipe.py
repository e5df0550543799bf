"""Recipes reject unknown keys with a suggestion; overrides, sweeps, variants and fingerprints."""

from pathlib import Path

import pytest

from trainer.device import pick_device
from trainer.errors import RecipeError, UsageError
from trainer.recipe.recipe import REMOVED_KEYS, load_recipe, parse_recipe


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
    assert (recipe.crosscoder.features, recipe.crosscoder.sparsity.k) == (8192, 32)


def test_the_fine_tune_recipe_compares_one_layer_of_two_models():
    recipe = load_recipe(Path(__file__).parents[3] / "trainer" / "recipes" / "finetune.yaml")

    assert recipe.corpus is not None and recipe.calibration is not None
    assert [source.name for source in recipe.sources] == ["base", "tuned"]
    assert len({source.layer for source in recipe.sources}) == 1
    assert sum(part.share for part in recipe.corpus.mix) == pytest.approx(1)


def test_an_unavailable_device_is_rejected_with_the_remedy():
    with pytest.raises(UsageError, match="Use `auto`"):
        pick_device("cuda:99")


DEMO = Path(__file__).parents[3] / "trainer" / "recipes" / "demo.yaml"


def placed(path: str, key: str, value: object) -> dict[str, object]:
    """A recipe with one setting of a section."""
    section: dict[str, object] = {key: value}
    for step in reversed(path.split(".")):
        section = {step: section}
    return {"name": "x"} | section


@pytest.mark.parametrize(("path", "key", "default"), REMOVED_KEYS)
def test_a_setting_that_is_gone_is_accepted_at_its_default_alone(path: str, key: str, default: float):
    plain = parse_recipe({"name": "x"}, origin="here")
    found = parse_recipe(placed(path, key, default), origin="here")

    assert found == plain
    assert found.fingerprint() == plain.fingerprint()
    with pytest.raises(RecipeError, match=rf"here: {path}\.{key} is gone .* Leave it out"):
        parse_recipe(placed(path, key, default / 2), origin="here")


@pytest.mark.parametrize(("path", "key", "default"), REMOVED_KEYS)
def test_an_override_of_a_setting_that_is_gone_is_refused(path: str, key: str, default: float):
    with pytest.raises(RecipeError, match="is gone"):
        parse_recipe({"name": "x"}, origin="here", overrides=(f"{path}.{key}={default / 2}",))


def test_settings_that_are_gone_leave_a_misspelt_section_to_be_named():
    with pytest.raises(RecipeError, match="verdit"):
        parse_recipe({"name": "x", "analysis": {"verdit": {"q_value": 0.05}}}, origin="here")


FORMER = (
    "training={epochs: 2, batch: 512, learning_rate: 3.0e-3, decay_share: 0.4}",
    "crosscoder.dead_features.after_rows=20000",
    "crosscoder.sparsity.anneal_share=0.1",
    "crosscoder.residual=null",
    "corpus.held_out=0.05",
    "calibration.rows=100000",
)
"""What the demo's recipe stated, or had by default, in its first versions."""


def test_a_run_keeps_its_identity_over_the_change_of_rules_and_defaults():
    demo = load_recipe(DEMO, FORMER)

    assert demo.fingerprint() == "36dbf40b"
    assert load_recipe(DEMO, (*FORMER, "training.weight_decay=0.1")).fingerprint() != "36dbf40b"
    changed = load_recipe(DEMO, (*FORMER, "analysis.verdict.probe_ratio=0.4"))
    assert changed.fingerprint() != demo.fingerprint()
    verdict = demo.identity()["analysis"]["verdict"]
    assert not {"probe_ratio", "excess", "fdr"} & verdict.keys()
    assert changed.identity()["analysis"]["verdict"]["probe_ratio"] == 0.4
