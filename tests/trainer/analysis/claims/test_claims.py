"""p- and q-values of claims against several sets of decoys."""

import json

import numpy as np
import pytest

from trainer.analysis.claims.claims import MIN_DECOYS, Ownership, claim_significance, read_known_false
from trainer.analysis.claims.contrast import ReadoutContrast

OWNERSHIP = Ownership(
    ["a", "a", "a", "b", "shared"],
    np.array([True, True, True, True, False]),
    np.array([[True, False]] * 3 + [[False, True], [True, True]]),
)
#                               strength 0.9, 0.4,  ?,    0.8
CONTRAST = ReadoutContrast(np.array([0.5, 0.5, 0.01, 0.5, np.nan]), np.array([0.05, 0.3, 0.0, 0.1, np.nan]), slack=0.0)
LIMIT = np.full(5, 0.5)


def decoys(count: int, largest: float) -> np.ndarray:
    """Strengths of decoys: all zero but one."""
    return np.array([largest, *np.zeros(count - 1)])


def test_each_owner_is_compared_with_its_own_decoys():
    sets = [{"a": decoys(199, 0.1), "b": decoys(199, 0.85)}]
    p, q, count = claim_significance(OWNERSHIP, CONTRAST, LIMIT, sets, least=0.02)

    # No decoy of 199 is as strong as 0.9; the ratio 0.6 is above the limit; the own score 0.01 is below `least`.
    assert p == pytest.approx([1 / 200, 1 / 200, np.nan, 2 / 200, np.nan], nan_ok=True)
    assert q == pytest.approx([2 / 200, 1.0, np.nan, 2 / 200, np.nan], nan_ok=True)
    assert count.tolist() == [199, 199, 199, 199, 0]


def test_the_largest_p_value_of_several_sets_counts_and_small_sets_are_ignored():
    many, few = {"b": decoys(300, 0.1)}, {"b": decoys(MIN_DECOYS - 1, 0.99)}
    other = {"b": decoys(199, 0.99)}

    assert claim_significance(OWNERSHIP, CONTRAST, LIMIT, [many, few], least=0.02)[1][3] == pytest.approx(1 / 301)
    assert claim_significance(OWNERSHIP, CONTRAST, LIMIT, [many, few, other], least=0.02)[1][3] == pytest.approx(
        2 / 200
    )
    assert claim_significance(OWNERSHIP, CONTRAST, LIMIT, [many, other], least=0.02)[2][3] == 300


def test_a_smaller_set_without_a_decoy_as_strong_does_not_bound_the_p_value():
    sets = [{"b": decoys(300, 0.1)}, {"b": decoys(199, 0.1)}]

    assert claim_significance(OWNERSHIP, CONTRAST, LIMIT, sets, least=0.02)[0][3] == pytest.approx(1 / 301)


def test_without_decoys_nothing_is_known():
    p, q, count = claim_significance(OWNERSHIP, CONTRAST, LIMIT, [], least=0.02)

    assert np.isnan(p).all() and np.isnan(q).all() and not count.any()


def test_the_claims_of_a_null_run_serve_as_decoys_for_every_owner(tmp_path):
    path = tmp_path / "calibration.json"
    assert read_known_false(path, OWNERSHIP) == []

    path.write_text(json.dumps({"known_false": {"null": [0.1, -0.2]}}))
    (found,) = read_known_false(path, OWNERSHIP)

    assert {name: values.tolist() for name, values in found.items()} == {"a": [0.1, -0.2], "b": [0.1, -0.2]}
