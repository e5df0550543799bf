"""Decoys match claims in firings, are read from one side only, and are tested like claims."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.worlds.tiny_activations import tiny_activations
from trainer.analysis.claims.contrast import ReadoutContrast, readout_contrast, readout_slack
from trainer.analysis.claims.decoys import (
    Decoys,
    decoy_codes,
    decoy_contrasts,
    decoy_thresholds,
    matched_sample,
    transplant_decoys,
)
from trainer.analysis.claims.readout import readout
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.crosscoder import Codes, Crosscoder, initial_weights
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


def test_sampled_values_are_distributed_like_the_wanted_ones():
    values = np.arange(100.0)

    assert values[matched_sample(values, np.array([20.0, 80.0]), 3)].tolist() == [30.0, 50.0, 70.0]
    assert values[matched_sample(values, np.array([99.0]), 4)].tolist() == [96.0, 97.0, 98.0, 99.0]
    assert values[matched_sample(values, np.array([0.0]), 3)].tolist() == [0.0, 1.0, 2.0]
    assert values[matched_sample(values, np.zeros(0), 4)].tolist() == [13.0, 38.0, 62.0, 87.0]
    assert matched_sample(np.array([3.0, 1.0]), np.array([2.0]), 5).tolist() == [0, 1]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.lists(st.integers(0, 50), max_size=10),
    st.integers(1, 50),
)
def test_nothing_is_sampled_twice(values, wanted, count):
    found = matched_sample(np.array(values, float), np.array(wanted, float), count)

    assert len(found) == min(count, len(values))
    assert (np.diff(found) > 0).all()


def crosscoder_of(store: ActivationStore) -> Crosscoder:
    """An untrained crosscoder; decoys need only its sources and their normalisers."""
    groups = (Group("shared", 4, 0, tuple(store.widths), tuple(store.widths)),)
    weights = initial_weights(store.widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(0))
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in store.widths.items()}
    return Crosscoder(store.widths, groups, weights, normaliser, {"shared": torch.tensor(0.1)})


def test_a_decoy_fires_as_often_as_its_feature(tmp_path):
    store = tiny_activations(tmp_path, rows=6000)
    decoys = [
        Decoys("left", np.array([0, 2]), {"left": torch.randn(2, 12, generator=torch.Generator().manual_seed(1))})
    ]
    thresholds = decoy_thresholds(store, crosscoder_of(store), decoys, np.array([0.05, 0.9, 0.2, 0.9]))
    crosscoder, found = crosscoder_of(store), np.zeros(2)
    for block in store.blocks():
        found += torch.bincount(
            decoy_codes(decoys, thresholds, crosscoder.normalise(block.rows)).feature, minlength=2
        ).numpy()

    # Rounding to bfloat16 moves a few rows across the threshold.
    assert found / store.manifest.rows == pytest.approx([0.05, 0.2], rel=0.05)


def moments_of(values: torch.Tensor, store: ActivationStore) -> Moments:
    """Moments of some features given as a dense table [rows, features]."""
    moments, first, folds = Moments(store.widths, values.shape[1]), 0, TwoFold.from_store(store)
    for block in store.blocks():
        count = len(block.rows["left"])
        part = values[first : first + count]
        at = torch.nonzero(part)
        codes = Codes(at[:, 0], at[:, 1], part[at[:, 0], at[:, 1]], count)
        moments.add({name: x.float() for name, x in block.rows.items()}, codes, folds.folds_of_block(block, first))
        first += count
    return moments


def test_decoys_made_from_what_both_sides_represent_look_shared(tmp_path):
    store = tiny_activations(tmp_path, rows=9000)
    left = torch.cat([block.rows["left"] for block in store.blocks()])
    mixed = left @ torch.randn(12, 2, generator=torch.Generator().manual_seed(4))
    moments = moments_of(mixed.clamp_min(0), store)
    readouts = {name: readout(moments, name) for name in store.widths}
    in_both = np.ones((2, 2), bool)

    found = transplant_decoys("left", readouts, in_both, np.zeros(2, bool), count=5, least=0.0)
    assert found is not None and found.features.tolist() == [0, 1]
    progress = Progress(RunFolder(tmp_path / "run"), "tiny")
    crosscoder = crosscoder_of(store)
    contrast = decoy_contrasts(
        store, crosscoder, [found], np.array([0.3, 0.3]), folds=TwoFold.from_store(store), progress=progress
    )["left"]

    # 27 of 30 concepts are in both sources, so most of what the left predicts the right predicts too.
    assert (contrast.own > 0.3).all()
    assert (contrast.ratio > 0.4).all() and (contrast.ratio < 1.05).all()


def test_nothing_is_transplanted_without_shared_features_or_with_too_poor_readouts(tmp_path):
    store = tiny_activations(tmp_path, rows=3000)
    left = torch.cat([block.rows["left"] for block in store.blocks()])
    moments = moments_of(left[:, :2].clamp_min(0), store)
    readouts = {name: readout(moments, name) for name in store.widths}
    exclusive, both = np.array([[True, False]] * 2), np.ones((2, 2), bool)

    assert transplant_decoys("left", readouts, exclusive, np.zeros(2, bool), count=5, least=0.0) is None
    assert transplant_decoys("left", readouts, both, np.zeros(2, bool), count=5, least=0.999) is None
    assert (
        decoy_contrasts(store, crosscoder_of(store), [], np.zeros(2), folds=TwoFold.from_store(store), progress=None)
        == {}
    )  # type: ignore[arg-type]


def test_a_contrast_compares_the_best_scores_of_both_sides():
    scores = {"a": np.array([0.5, 0.1, 0.4, np.nan]), "b": np.array([0.3, 0.2, 0.4, 0.1]), "c": np.array([0.1] * 4)}
    holders = np.array([[True, True, False], [False, False, True], [True, True, True], [True, False, False]])
    found = readout_contrast(scores, holders, slack=0.1)

    assert found.own == pytest.approx([0.5, 0.1, np.nan, np.nan], nan_ok=True)
    assert found.other == pytest.approx([0.1, 0.2, np.nan, np.nan], nan_ok=True)
    assert found.ratio == pytest.approx([0.2 / 0.6, 0.3 / 0.2, np.nan, np.nan], nan_ok=True)
    assert found.strength == pytest.approx([2 / 3, -0.5, np.nan, np.nan], nan_ok=True)


def test_a_negative_score_counts_as_zero():
    assert ReadoutContrast(np.array([0.4]), np.array([-0.3]), slack=0.1).ratio == pytest.approx([0.2])


def test_the_slack_is_the_widest_width_over_the_rows_of_a_fold(tmp_path):
    store = tiny_activations(tmp_path, rows=600, held_out=200)

    assert readout_slack(moments_of(torch.zeros(800, 1), store)) == 20 / 400
