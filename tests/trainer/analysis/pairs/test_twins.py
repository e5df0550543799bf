"""Neighbours of features: by the rows they fire on, and by direction."""

import numpy as np
import pytest
import torch

from tests.worlds.dense_codes import spool_of
from tests.worlds.tiny_store import tiny_crosscoder
from trainer.analysis.pairs.coactivation import Coactivation
from trainer.analysis.pairs.twins import COACTIVE, KINDS, SIMILAR, TWIN, Cosines, Neighbours, neighbours
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser


def crosscoder(features: int, exclusive: int) -> Crosscoder:
    """Random directions in few dimensions, so that many are similar."""
    widths = {"left": 3, "right": 4}
    groups = (
        Group("shared", features - exclusive, 0, tuple(widths), tuple(widths)),
        Group("left", exclusive, features - exclusive, ("left",), ("left",)),
    )
    weights = initial_weights(widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(0))
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in widths.items()}
    return Crosscoder(widths, groups, weights, normaliser, {"shared": torch.tensor(0.1), "left": torch.tensor(0.1)})


def dense_cosines(crosscoder: Crosscoder) -> np.ndarray:
    """Largest cosine over sources that both write to, pair by pair."""
    result = np.full((crosscoder.features, crosscoder.features), np.nan)
    for source in crosscoder.sources:
        directions = crosscoder.decoder(source).numpy()
        for one, first in enumerate(directions):
            for two, second in enumerate(directions):
                if first.any() and second.any():
                    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
                    result[one, two] = np.nanmax([result[one, two], cosine])
    return result


def found(dense: np.ndarray, crosscoder: Crosscoder, owner: list[str], count: int, folder) -> Neighbours:
    with spool_of(dense, folder) as spool:
        return neighbours(Coactivation(spool), Cosines(crosscoder), owner, count)


def test_cosines_are_largest_over_the_sources_that_both_write_to():
    some = crosscoder(8, 3)
    pairs = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)

    assert np.allclose(
        Cosines(some).of_pairs(pairs[:, 0], pairs[:, 1]), dense_cosines(some)[pairs[:, 0], pairs[:, 1]], atol=1e-6
    )


def test_features_that_share_no_source_have_no_cosine():
    assert np.isnan(Cosines(tiny_crosscoder()).of_pairs(np.array([2]), np.array([3]))).all()


@pytest.mark.parametrize("count", [1, 3])
def test_the_neighbours_of_each_kind_are_those_of_an_exhaustive_search(count, tmp_path):
    rng, features = np.random.default_rng(1), 24
    dense = np.where(rng.random((200, features)) < 0.3, rng.random((200, features)) + 0.5, 0).astype(np.float32)
    dense[:, 20:] = dense[:, 4:8] * rng.choice([0.0, 1.0], (200, 4), p=[0.2, 0.8])  # twins in the other group
    dense[:, 10:14] = dense[:, :4] + dense[:, 10:14] * 0.3  # similar within a group
    dense[:, 15] = 0
    some = crosscoder(features, 4)
    owner = ["shared"] * 20 + ["left"] * 4
    result = found(dense, some, owner, count, tmp_path)

    correlation = np.full((features, features), -np.inf)
    alive = np.flatnonzero(dense.std(axis=0) > 0)
    correlation[np.ix_(alive, alive)] = np.corrcoef(dense[:, alive], rowvar=False)
    cosine = dense_cosines(some)
    expected = []
    for one in range(features):
        kinds: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
        for two in range(features):
            if one == two or 15 in (one, two):
                continue
            if owner[one] != owner[two] and correlation[one, two] >= TWIN:
                kinds["twin"].append((correlation[one, two], two))
            elif owner[one] == owner[two] and cosine[one, two] >= SIMILAR:
                kinds["similar"].append((cosine[one, two], two))
            elif correlation[one, two] >= COACTIVE:
                kinds["coactive"].append((correlation[one, two], two))
        for kind in KINDS:
            expected += [(one, kind, two) for _, two in sorted(kinds[kind], reverse=True)[:count]]
    columns = result.columns()
    got = list(zip(columns["feature"].tolist(), columns["kind"].to_pylist(), columns["other"].tolist(), strict=True))
    assert got == expected
    assert {"twin", "similar", "coactive"} == {kind for _, kind, _ in expected}, "every kind occurs"
    assert np.allclose(result.correlation, correlation[result.feature, result.other], atol=1e-5)
    assert np.allclose(result.cosine, cosine[result.feature, result.other], atol=1e-5, equal_nan=True)


def test_the_strongest_twin_is_the_largest_correlation_with_another_owner(tmp_path):
    dense = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [2, 2, 0, 1], [0, 0, 0, 3]], np.float32)
    # Features 0 and 1 fire on the same rows; they are of one owner in the first case, of two in the second.
    same = found(dense, tiny_crosscoder(), ["a", "a", "b", "b"], 5, tmp_path)
    apart = found(dense, tiny_crosscoder(), ["a", "b", "b", "b"], 5, tmp_path)

    with_third = np.corrcoef(dense, rowvar=False)[0, 2]
    assert with_third < COACTIVE
    assert same.strongest_twin.tolist() == pytest.approx([0, 0, 0, 0])
    assert apart.strongest_twin.tolist() == pytest.approx([1, 1, 0, 0])


def test_no_neighbours_are_kept_when_none_are_asked_for(tmp_path):
    dense = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    result = found(dense, tiny_crosscoder(), ["a", "b", "b", "b"], 0, tmp_path)

    assert len(result.feature) == 0
    assert result.strongest_twin.tolist() == pytest.approx([1, 1, 0, 0])


def test_each_selected_feature_is_paired_with_its_strongest_twin():
    kinds = [KINDS.index(kind) for kind in ("coactive", "twin", "twin", "twin", "similar")]
    table = Neighbours(
        feature=np.array([0, 0, 0, 2, 3]),
        other=np.array([5, 4, 3, 0, 1]),
        kind=np.array(kinds),
        cosine=np.zeros(5),
        correlation=np.array([0.2, 0.8, 0.5, 0.6, 0.9]),
        strongest_twin=np.zeros(6),
    )

    assert table.strongest_twins(np.array([True, True, True, True, True, True])).tolist() == [[0, 4], [2, 0]]
    assert table.strongest_twins(np.array([False, True, True, True, True, True])).tolist() == [[2, 0]]
    assert table.strongest_twins(np.zeros(6, bool)).shape == (0, 2)
