"""Claims: several sets of decoys, and what makes a claim too weak to be one."""

import json

import numpy as np
import pytest

from trainer.analysis.claims.claims import ENOUGH_DECOYS, Ownership, doubts, known_false
from trainer.analysis.claims.contrast import Contrast

CLAIMED = Ownership(
    ["a", "a", "a", "b", "shared"],
    np.array([True, True, True, True, False]),
    np.array([[True, False]] * 3 + [[False, True], [True, True]]),
)
#                               strength 0.9, 0.4,  ?,    0.8
CONTRAST = Contrast(np.array([0.5, 0.5, 0.01, 0.5, np.nan]), np.array([0.05, 0.3, 0.0, 0.1, np.nan]), slack=0.0)
LIMIT = np.full(5, 0.5)


def decoys(count: int, at_least: float) -> np.ndarray:
    """All weak but one."""
    return np.array([at_least, *np.zeros(count - 1)])


def test_each_owner_is_held_against_its_own_decoys():
    sets = [{"a": decoys(199, 0.1), "b": decoys(199, 0.85)}]
    p, q, count = doubts(CLAIMED, CONTRAST, LIMIT, sets, least=0.02)

    # Nothing among 199 is as strong as 0.9; the ratio 0.6 is too high for a claim; 0.01 is too little to tell.
    assert p == pytest.approx([1 / 200, 1 / 200, np.nan, 2 / 200, np.nan], nan_ok=True)
    assert q == pytest.approx([2 / 200, 1.0, np.nan, 2 / 200, np.nan], nan_ok=True)
    assert count.tolist() == [199, 199, 199, 199, 0]


def test_the_most_doubtful_of_several_sets_decides_and_small_ones_are_not_asked():
    many, few = {"b": decoys(300, 0.1)}, {"b": decoys(ENOUGH_DECOYS - 1, 0.99)}
    other = {"b": decoys(199, 0.99)}

    assert doubts(CLAIMED, CONTRAST, LIMIT, [many, few], least=0.02)[1][3] == pytest.approx(1 / 301)
    assert doubts(CLAIMED, CONTRAST, LIMIT, [many, few, other], least=0.02)[1][3] == pytest.approx(2 / 200)
    assert doubts(CLAIMED, CONTRAST, LIMIT, [many, other], least=0.02)[2][3] == 300


def test_a_smaller_set_without_a_decoy_as_strong_does_not_limit_how_small_a_p_value_can_be():
    sets = [{"b": decoys(300, 0.1)}, {"b": decoys(199, 0.1)}]

    assert doubts(CLAIMED, CONTRAST, LIMIT, sets, least=0.02)[0][3] == pytest.approx(1 / 301)


def test_without_decoys_nothing_is_known():
    p, q, count = doubts(CLAIMED, CONTRAST, LIMIT, [], least=0.02)

    assert np.isnan(p).all() and np.isnan(q).all() and not count.any()


def test_a_null_run_stands_for_every_owner(tmp_path):
    path = tmp_path / "calibration.json"
    assert known_false(path, CLAIMED) == []

    path.write_text(json.dumps({"known_false": {"null": [0.1, -0.2]}}))
    (found,) = known_false(path, CLAIMED)

    assert {name: values.tolist() for name, values in found.items()} == {"a": [0.1, -0.2], "b": [0.1, -0.2]}
