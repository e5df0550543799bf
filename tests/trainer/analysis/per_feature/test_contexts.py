"""Selected firings: the strongest exactly, and an unbiased sample of the rest."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds.dense_codes import feature_codes, matrices
from trainer.analysis.per_feature.contexts import BUCKETS, TOP, select_firings
from trainer.analysis.rows.row_order import RowOrder
from trainer.recipe.measuring import ContextsRecipe


def row_order_of(sequence: np.ndarray) -> RowOrder:
    return RowOrder(sequence.astype(np.int32), np.arange(len(sequence), dtype=np.int32), None)


def strongest(dense: np.ndarray, sequence: np.ndarray, feature: int, count: int) -> list[tuple[int, float]]:
    """The strongest row of every sequence in which a feature fires, strongest and then earliest first."""
    best: dict[int, tuple[float, int]] = {}
    for row, value in enumerate(dense[:, feature]):
        if value and value > best.get(int(sequence[row]), (0.0, 0))[0]:
            best[int(sequence[row])] = (float(value), row)
    return [(row, value) for value, row in sorted(best.values(), key=lambda pair: (-pair[0], pair[1]))][:count]


@settings(max_examples=60, deadline=None)
@given(dense=matrices(), count=st.integers(1, 5), data=st.data())
def test_the_strongest_are_those_of_an_exhaustive_search_one_per_sequence(dense, count, data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(dense), max_size=len(dense)))
    sequence = np.repeat(np.arange(len(lengths)), lengths)[: len(dense)]
    kept = select_firings(
        feature_codes(dense, first=3), row_order_of(sequence), ContextsRecipe(top=count, per_quantile=2)
    )

    for feature in range(dense.shape[1]):
        selected = (kept.feature == feature) & (kept.bucket == TOP)
        found = list(zip(kept.position[selected].tolist(), kept.peak[selected].tolist(), strict=True))
        assert found == strongest(dense, sequence, feature, count)
        assert kept.rank[selected].tolist() == list(range(len(found)))


@settings(max_examples=60, deadline=None)
@given(dense=matrices(), count=st.integers(0, 4))
def test_a_fifth_holds_the_requested_number_of_firings_of_its_range_or_all(dense, count):
    sequence = np.arange(len(dense)) // 4
    kept = select_firings(feature_codes(dense), row_order_of(sequence), ContextsRecipe(top=1, per_quantile=count))

    for feature in range(dense.shape[1]):
        column = dense[:, feature]
        for fifth in range(5):
            low, high = (column.max() * np.float64(edge) / 5 for edge in (fifth, fifth + 1))
            in_fifth = np.flatnonzero((column > low) & (column <= high))
            selected = (kept.feature == feature) & (kept.bucket == BUCKETS.index(f"q{fifth + 1}"))
            assert set(kept.position[selected].tolist()) <= set(in_fifth.tolist())
            assert selected.sum() == min(count, len(in_fifth)) == len(set(kept.position[selected].tolist()))
            assert np.array_equal(kept.peak[selected], np.sort(column[kept.position[selected]])[::-1])


def test_every_firing_of_a_fifth_is_equally_likely_to_be_selected():
    dense = np.full((10, 1), 1.0, np.float32)
    draws = np.zeros(10)
    for seed in range(400):
        kept = select_firings(
            feature_codes(dense), row_order_of(np.arange(10)), ContextsRecipe(top=1, per_quantile=5), seed=seed
        )
        draws[kept.position[kept.bucket != TOP]] += 1

    # Each is selected in half of 400 draws; the standard deviation is 10, the tolerance five of them.
    assert draws.sum() == 2000
    assert (np.abs(draws - 200) < 50).all()


def test_selected_firings_are_sorted_by_feature_bucket_and_rank():
    dense = np.random.default_rng(0).choice([0.0, 0.0, 1.0, 2.0, 3.0], (60, 5)).astype(np.float32)
    kept = select_firings(feature_codes(dense), row_order_of(np.arange(60) // 3), ContextsRecipe(top=4, per_quantile=3))
    key = list(zip(kept.feature.tolist(), [BUCKETS[code] for code in kept.bucket], kept.rank.tolist(), strict=True))

    assert key == sorted(key)


def test_a_feature_that_never_fires_has_no_selected_firings():
    kept = select_firings(feature_codes(np.zeros((4, 2), np.float32)), row_order_of(np.arange(4)), ContextsRecipe())

    assert len(kept.feature) == 0
