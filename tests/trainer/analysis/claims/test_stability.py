"""A feature is found again if owner, direction and activations all match."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tests.worlds.tiny_store import WIDTHS, tiny_crosscoder, tiny_store
from trainer.analysis.claims import stability as module
from trainer.analysis.claims.claims import Ownership
from trainer.analysis.claims.stability import RunFeatures, found_again, other_runs, stability
from trainer.analysis.per_feature.decoder_norms import decoder_norms
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder, write_json

AMPLITUDES = {(0, 0, 7): 2.0, (1, 0, 14): 2.0, (2, 1, 5): 3.0}


def features_of(crosscoder: Crosscoder, activations: np.ndarray) -> RunFeatures:
    ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe())
    return RunFeatures(crosscoder, ownership, sp.csc_array(activations))


ACTIVATIONS = np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1], [1, 0, 2, 0], [0, 0, 0, 0]])


def test_a_run_finds_all_its_own_features_again():
    this_run = features_of(tiny_crosscoder(), ACTIVATIONS)

    assert found_again(this_run, this_run).tolist() == [True] * 4


def test_a_feature_with_other_firings_is_not_found_again():
    moved = ACTIVATIONS.copy()
    moved[:, 2] = np.roll(moved[:, 2], 3)

    assert found_again(features_of(tiny_crosscoder(), ACTIVATIONS), features_of(tiny_crosscoder(), moved)).tolist() == [
        True, True, False, True,
    ]  # fmt: skip


def test_a_feature_with_another_direction_in_one_source_is_not_found_again():
    other = tiny_crosscoder()
    other.weights["decoder.right.shared"] = other.weights["decoder.right.shared"].roll(1, dims=1)

    # Feature 1 is owned by the left source alone, where its direction is unchanged.
    assert found_again(features_of(tiny_crosscoder(), ACTIVATIONS), features_of(other, ACTIVATIONS)).tolist() == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_feature_of_another_owner_is_not_found_again():
    other = tiny_crosscoder()
    other.weights["decoder.left.shared"] = other.weights["decoder.left.shared"] / 3

    assert found_again(features_of(tiny_crosscoder(), ACTIVATIONS), features_of(other, ACTIVATIONS))[1] == np.False_


def test_runs_of_the_same_name_on_the_same_store_are_compared(tmp_path):
    store = tiny_store(tmp_path / "store", AMPLITUDES)
    for name, rows in (("tiny-a", "here"), ("tiny-b", "here"), ("tiny-c", "there"), ("else-d", "here")):
        folder = RunFolder(tmp_path / "runs" / name)
        tiny_crosscoder().save(folder.path)
        write_json(folder.store, {"path": rows})
    (tmp_path / "runs" / "tiny-e").mkdir()
    this_run = RunFolder(tmp_path / "runs" / "tiny-a")
    crosscoder = tiny_crosscoder()
    ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe())

    others = other_runs(this_run)
    found = stability(store, crosscoder, ownership, others, AnalysisRecipe())

    assert [one.run_id for one in others] == ["tiny-b"]
    assert found.looked_in.tolist() == [1] * 4
    assert found.found_in[:3].tolist() == [1, 1, 1]
    assert found.share[:3].tolist() == [1, 1, 1]


def test_a_run_without_features_of_an_owner_does_not_count_for_its_claims(tmp_path):
    store, crosscoder = tiny_store(tmp_path / "store", AMPLITUDES), tiny_crosscoder()
    ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe())
    group = Group("shared", 4, 0, ("left", "right"), ("left", "right"))
    weights = {
        f"{kind}.{name}.shared": torch.eye(4, WIDTHS[name]) for kind in ("encoder", "decoder") for name in WIDTHS
    }
    biases = {f"decoder_bias.{name}": torch.zeros(width) for name, width in WIDTHS.items()}
    biases["encoder_bias.shared"] = torch.zeros(4)
    threshold = {"shared": torch.tensor(0.25)}
    standard = Crosscoder(WIDTHS, (group,), weights | biases, crosscoder.normaliser, threshold)
    folder = RunFolder(tmp_path / "runs" / "tiny-b")
    standard.save(folder.path)

    found = stability(store, crosscoder, ownership, [folder], AnalysisRecipe())

    # Feature 0 is shared, 1 is owned by the left source by its norms, 2 and 3 are of dedicated groups.
    assert ownership.owner == ["shared", "left", "left", "right"]
    assert found.looked_in.tolist() == [1, 0, 0, 0]
    assert np.isnan(found.share).tolist() == [False, True, True, True]


def test_without_other_runs_stability_is_unknown(tmp_path):
    store, crosscoder = tiny_store(tmp_path / "store", AMPLITUDES), tiny_crosscoder()
    ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), AnalysisRecipe())
    found = stability(store, crosscoder, ownership, [], AnalysisRecipe())

    assert np.isnan(found.share).all()
    assert other_runs(RunFolder(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(("block", "entries"), [(1, 2**24), (3, 2**24), (512, 1), (512, 9)])
def test_what_is_compared_at_a_time_changes_nothing(monkeypatch, block, entries):
    turned = tiny_crosscoder()
    turned.weights["decoder.right.shared"] = turned.weights["decoder.right.shared"].roll(1, dims=1)
    this_run, other_run = features_of(tiny_crosscoder(), ACTIVATIONS), features_of(turned, ACTIVATIONS)
    expected = found_again(this_run, other_run).tolist()
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "ENTRIES", entries)

    assert found_again(this_run, other_run).tolist() == expected == [False, True, True, True]
