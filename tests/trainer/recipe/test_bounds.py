"""Recipes that are half right are refused: repeated keys, endless aliases, numbers out of range, odd sweeps."""

import math
from typing import Any, get_args

import annotated_types
import pytest

from trainer.errors import RecipeError
from trainer.recipe.fitting import RecipeSection
from trainer.recipe.recipe import MAX_SWEEP, Recipe, load_recipe, parse_recipe


def load(folder, text, *overrides):
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml", overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\ntraining: {epochs: 1}\ntraining: {batch: 8}",
            r"key 'training' stands twice, in line 2 and in line 3",
        ),
        ("name: x\nname: y", r"key 'name' stands twice"),
        (
            "name: x\ntraining:\n  batch: 8\n  epochs: 1\n  batch: 16",
            r"key 'batch' stands twice, in line 3 and in line 5",
        ),
        ("name: x\ncorpus: {mix: [{path: a, path: b}]}", r"key 'path' stands twice"),
        ("name: x\nsweep: {training.seed: [1], 'training.seed': [2]}", r"key 'training.seed' stands twice"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            r"more than 100,000 entries",
        ),
        ("name: &a [*a]", r"more than 100,000 entries"),
        ("name: x\ntraining: {seed: " + "9" * 5000 + "}", r"not readable YAML"),
        ("name: 2024-13-45", r"not readable YAML"),
        ("name: " + "[" * 5000, r"not readable YAML"),
        ("name: x\n? [a, b]\n: 1", r"not readable YAML"),
        ("name: !!python/object/apply:os.system [ls]", r"not readable YAML"),
        ("name: x\x00", r"not readable YAML"),
    ],
)
def test_yaml_that_would_be_read_as_something_else_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text)


def test_aliases_and_merged_sections_are_fine(tmp_path):
    text = "name: x\nsources:\n  - &one {name: a, model: m, layer: 1}\n  - {<<: *one, name: b}\n  - {<<: *one, name: c}"

    assert [source.model for source in load(tmp_path, text).sources] == ["m", "m", "m"]


def test_an_override_with_a_repeated_key_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="is not a YAML value"):
        load(tmp_path, "name: x", "training={epochs: 1, epochs: 2}")


def numeric_fields(section: type[RecipeSection] = Recipe, path: str = "") -> list[tuple[str, Any, type]]:
    found = []
    for name, field in section.model_fields.items():
        parts = [field.annotation, *get_args(field.annotation)]
        for part in parts:
            if isinstance(part, type) and issubclass(part, RecipeSection):
                found += numeric_fields(
                    part,
                    f"{path}{name}."
                    + ("0." if field.annotation is not part and "tuple" in str(field.annotation) else ""),
                )
            elif part in (int, float):
                found.append((f"{path}{name}", field.metadata, part))
    return found


@pytest.mark.parametrize(("path", "metadata", "kind"), numeric_fields())
def test_every_number_of_a_recipe_has_bounds_on_both_sides(path, metadata, kind):
    kinds = {type(entry) for entry in metadata}
    assert kinds & {annotated_types.Ge, annotated_types.Gt}, f"{path} may be minus a billion"
    assert kinds & {annotated_types.Le, annotated_types.Lt}, f"{path} may be without end"


LEFT_OPEN = ("training.learning_rate", "training.epochs")
"""Settings of the list below that may be absent."""


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**23, -(10**23), 1e300, "inf", "x", None, [], {}])
@pytest.mark.parametrize(
    "path",
    [
        "training.learning_rate",
        "training.seed",
        "corpus.seed",
        "calibration.seed",
        "training.epochs",
        "harvest.rows",
        "crosscoder.features",
        "crosscoder.sparsity.coefficient",
        "analysis.verdict.nu_error",
        "harvest.outlier_norm",
        "calibration.frequencies",
        "calibration.amplitudes",
        "analysis.shared_within",
        "crosscoder.decoder_norm",
    ],
)
def test_numbers_out_of_range_are_refused_with_their_place(path, value):
    if value is None and path in LEFT_OPEN:
        pytest.skip("the same as leaving it out")
    data: dict[str, Any] = {"name": "x", "corpus": {"mix": [{"path": "a"}]}}
    *sections, key = path.split(".")
    section = data
    for step in sections:
        section = section.setdefault(step, {})
    section[key] = value

    with pytest.raises(RecipeError, match=path.replace(".", r"\.")):
        parse_recipe(data, origin="here")


@pytest.mark.parametrize("frequencies", [[2.0], [0.0], [1.0], [-0.1], [0.1, math.nan], []])
def test_frequencies_are_shares_of_the_rows(frequencies):
    with pytest.raises(RecipeError, match=r"calibration\.frequencies"):
        parse_recipe({"name": "x", "calibration": {"frequencies": frequencies}}, origin="here")


@pytest.mark.parametrize("shared", [[0.7, 0.3], [0.5, 0.5], [-0.1, 0.5], [0.5, 1.5], [0.1], [0.1, 0.2, 0.3]])
def test_a_reversed_or_odd_range_is_refused(shared):
    with pytest.raises(RecipeError, match=r"shared_within"):
        parse_recipe({"name": "x", "analysis": {"shared_within": shared}}, origin="here")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"training.seed": []}, r"training\.seed has no values"),
        ({"training.seed": [0, 1], "crosscoder.features": []}, r"crosscoder\.features has no values"),
        ({"training.seed": list(range(MAX_SWEEP + 1))}, r"257 combinations, and at most 256"),
        ({"training.seed": list(range(100)), "crosscoder.features": list(range(1, 101))}, r"10,000 combinations"),
        ({"training.seed": [0, 1, 0]}, r"lists the same values twice"),
        ({"training.seed": [1, "1"]}, r"lists the same values twice"),
        ({"training.learning_rate": [1e-3, math.inf]}, r"training\.learning_rate"),
        ({"training.seed": [10**23]}, r"training\.seed"),
    ],
)
def test_a_sweep_without_runs_or_with_too_many_is_refused(sweep, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"name": "x", "sweep": sweep}, origin="here").variants()


def test_a_folder_given_as_a_recipe_is_refused_with_the_recipe_in_it(tmp_path):
    with pytest.raises(RecipeError, match=r"is a folder, not a recipe\. Give a YAML file"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x")
    with pytest.raises(RecipeError, match=r"Did you mean .*/recipe\.yaml\?"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"No recipe at"):
        load_recipe(tmp_path / "recipe.yaml" / "inside")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read"):
        load_recipe(tmp_path / "loop.yaml")
