"""The recipe of an imported crosscoder agrees with its checkpoint."""

import pytest
import torch

from tests.worlds.foreign_checkpoints import OWN_FIRST, STANDARD, UNEVEN, assert_identical, random_crosscoder
from trainer.errors import CrosscoderError
from trainer.interchange.formats import write
from trainer.interchange.imported import crosscoder_of, recipe_of
from trainer.recipe.recipe import load_recipe, parse_recipe


def test_the_recipe_has_the_groups_of_a_partition_in_their_order(tmp_path):
    crosscoder = random_crosscoder(OWN_FIRST, normalisation=UNEVEN, threshold=0.7)
    write(crosscoder, tmp_path / "theirs", "dictionary-learning")

    recipe = recipe_of(tmp_path / "theirs", "theirs", options={})

    assert recipe.crosscoder.variant == "custom"
    found = [(group.name, group.features, group.reads, group.writes) for group in recipe.crosscoder.groups]
    assert found == [
        ("left", 2, ("left",), ("left",)),
        ("right", 3, ("right",), ("right",)),
        ("shared", 5, ("left", "right"), ("left", "right")),
    ]
    assert recipe.crosscoder.features == 10
    assert recipe.crosscoder.sparsity.rank_by == "sum_of_norms"
    assert recipe.imported is not None and recipe.imported.format == "dictionary-learning"


@pytest.mark.parametrize(
    ("fields", "kind", "k"),
    [({"threshold": 0.7}, "batch_topk", None), ({}, "l1", None), ({"row_k": {"shared": 4}}, "topk", 4)],
)
def test_the_rule_for_firing_is_taken_from_the_crosscoder(tmp_path, fields, kind, k):
    random_crosscoder(STANDARD, **fields).save(tmp_path / "ours")

    sparsity = recipe_of(tmp_path / "ours", "ours", options={}).crosscoder.sparsity

    assert sparsity.kind == kind
    assert k is None or sparsity.k == k


def test_a_frozen_recipe_reads_the_same_crosscoder_with_the_same_options_again(tmp_path):
    crosscoder = random_crosscoder(STANDARD, normalisation=UNEVEN, threshold=0.7)
    write(crosscoder, tmp_path / "theirs", "dictionary-learning")
    recipe = recipe_of(tmp_path / "theirs", "theirs", options={"sources": ("one", "two")})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())

    frozen = load_recipe(tmp_path / "recipe.yaml")

    assert frozen.fingerprint() == recipe.fingerprint()
    again = crosscoder_of(frozen.imported)
    assert again.sources == ("one", "two")
    torch.testing.assert_close(again.decoder("two"), crosscoder.decoder("right"), rtol=0, atol=0)
    assert_identical(crosscoder_of(recipe.imported), again)


def test_a_changed_file_at_the_same_path_is_refused(tmp_path):
    random_crosscoder(STANDARD, seed=1).save(tmp_path / "ours")
    recipe = recipe_of(tmp_path / "ours", "ours", options={})
    random_crosscoder(STANDARD, seed=2).save(tmp_path / "ours")

    with pytest.raises(CrosscoderError, match="is not the file this run was made from"):
        crosscoder_of(recipe.imported)


def test_imports_do_not_change_the_fingerprints_of_trained_runs(tmp_path):
    random_crosscoder(STANDARD).save(tmp_path / "ours")
    trained = parse_recipe({"name": "mine"}, origin="the test")
    imported = recipe_of(tmp_path / "ours", "mine", options={})

    assert "imported" not in trained.identity()
    assert imported.identity()["imported"] == imported.imported.model_dump(mode="json")
    again = parse_recipe(imported.model_dump(mode="json", exclude={"imported"}), origin="the test")
    assert again.fingerprint() != imported.fingerprint()
