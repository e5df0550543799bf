"""Divergence ratios: by hand, and what their intervals hold where there is nothing to find."""

import numpy as np
import pytest
import scipy.sparse as sp

from trainer.analysis.behaviour import divergence_ratio
from trainer.analysis.behaviour.divergence_ratio import Units, divergence_ratios


def members(*rows: list[int], units: int) -> sp.csr_matrix:
    """Candidates given by the units inside them."""
    matrix = np.zeros((len(rows), units), bool)
    for candidate, inside in enumerate(rows):
        matrix[candidate, inside] = True
    return sp.csr_matrix(matrix)


def test_a_ratio_is_that_inside_over_that_outside_beyond_the_reference():
    units = Units(np.array([4.0, 4, 1, 1]), np.array([2.0, 2, 1, 1]), np.arange(4))

    found = divergence_ratios(members([0, 1], [2, 3], units=4), units, prior=0)

    assert found.value.tolist() == pytest.approx([2, 0.5]), "8/4 inside and 2/2 outside, not four times"
    assert found.low.tolist() == found.high.tolist() == pytest.approx([2, 0.5]), "all groups agree"
    assert found.groups.tolist() == [2, 2]


def test_groups_of_documents_that_disagree_widen_the_interval_and_units_of_one_group_do_not_narrow_it():
    agreeing = Units(np.array([4.0, 4, 4, 4, 1, 1]), np.ones(6), np.array([0, 1, 2, 3, 4, 5]))
    disagreeing = agreeing._replace(apart=np.array([1.0, 7, 1, 7, 1, 1]))
    in_two = disagreeing._replace(group=np.array([0, 0, 1, 1, 4, 5]))
    inside = members([0, 1, 2, 3], units=6)

    widths = [
        float(np.log(ratios.high / ratios.low)[0])
        for ratios in (divergence_ratios(inside, units, prior=0) for units in (agreeing, disagreeing, in_two))
    ]

    assert widths[0] == pytest.approx(0)
    assert widths[1] > 1
    assert widths[2] == pytest.approx(0), "each of the two groups has 8 of 16"


def test_a_candidate_of_one_group_has_no_ratio():
    units = Units(np.array([4.0, 4, 1]), np.ones(3), np.array([0, 0, 1]))

    found = divergence_ratios(members([0, 1], units=3), units)

    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()
    assert found.groups.tolist() == [1]


def test_text_on_which_nothing_moves_gives_no_infinite_ratio():
    units = Units(np.array([1e-9, 1e-9, 1, 1]), np.array([0.0, 0, 1, 1]), np.arange(4))

    found = divergence_ratios(members([0, 1], units=4), units)

    assert found.value[0] == pytest.approx(1, abs=0.01)


def test_about_one_lower_bound_in_twenty_is_above_one_where_there_is_nothing_to_find():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(200), 10)
    reference = rng.gamma(2, 1, len(group))
    shift = np.repeat(rng.normal(0, 0.3, 200), 10)  # of whole groups, which is what intervals are over
    apart = reference * np.exp(shift + rng.normal(0, 0.5, len(group)))
    inside = members(
        *(np.flatnonzero(np.isin(group, rng.choice(200, 20, replace=False))) for _ in range(400)), units=2000
    )

    found = divergence_ratios(inside, Units(apart, reference, group))

    assert 0.02 < (found.low > 1).mean() < 0.10
    assert 0.02 < (found.high < 1).mean() < 0.10


def test_candidates_in_blocks_and_none_at_all_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    units = Units(rng.gamma(2, 1, 60), rng.gamma(2, 1, 60), np.arange(60) // 6)
    inside = members(*(rng.choice(60, 15, replace=False).tolist() for _ in range(7)), units=60)
    whole = divergence_ratios(inside, units)

    monkeypatch.setattr(divergence_ratio, "CELLS", 25)
    blocks = divergence_ratios(inside, units)

    assert all(np.array_equal(one, other) for one, other in zip(whole, blocks, strict=True))
    assert [len(part) for part in divergence_ratios(inside[:0], units)] == [0] * 4
