"""Companions that keep each other's company, and circles that never meet."""

import numpy as np
import pytest

from tests.worlds.dense_codes import spool_of
from trainer.analysis.coactivation import Coactivation
from trainer.analysis.companions import COMPANIONS, cohesion
from trainer.analysis.twins import COACTIVE


def cohesion_of(links: list[tuple[int, int, float]], features: int) -> list[float]:
    both = np.array([(one, two) for one, two, _ in links] + [(two, one) for one, two, _ in links])
    strength = np.array([strength for *_, strength in links] * 2)
    return cohesion(both[:, 0], both[:, 1], strength, features).tolist()


def test_a_circle_of_friends_is_whole_and_two_circles_that_never_meet_are_not():
    # 0 belongs to the circle 1, 2, 3 and to the circle 4, 5, 6.
    links = [(0, one, 0.5) for one in range(1, 7)]
    links += [(1, 2, 0.5), (1, 3, 0.5), (2, 3, 0.5), (4, 5, 0.5), (4, 6, 0.5), (5, 6, 0.5)]

    found = cohesion_of(links, 8)

    # Six of the fifteen pairs of its companions meet; all companions of the others do.
    assert found[0] == pytest.approx(6 / 15)
    assert found[1:7] == [1.0] * 6
    assert np.isnan(found[7])


def test_two_companions_say_nothing():
    assert np.isnan(cohesion_of([(0, 1, 0.5), (0, 2, 0.5)], 3)).all()


def test_only_the_strongest_companions_count():
    strong = list(range(1, COMPANIONS + 1))
    links = [(0, one, 0.9) for one in strong] + [(one, two, 0.3) for one in strong for two in strong if one < two]
    weak = [(0, one, 0.2) for one in range(COMPANIONS + 1, COMPANIONS + 5)]

    assert cohesion_of(links + weak, COMPANIONS + 5)[0] == 1.0


def test_a_feature_that_stands_for_three_things_is_told_from_those_that_stand_for_one(tmp_path):
    chance = np.random.default_rng(0)
    situation = chance.integers(0, 12, 6000)
    # Three features for every situation, and one feature that fires in the first three of them.
    fires = np.stack([(situation == number // 3) & (chance.random(6000) < 0.9) for number in range(36)], axis=1)
    several = (situation < 3) & (chance.random(6000) < 0.9)
    dense = np.column_stack([fires, several]).astype(np.float32)

    with spool_of(dense, tmp_path, block=1000) as spool:
        correlation = np.concatenate([part for _, part in Coactivation(spool).correlations()])
    np.fill_diagonal(correlation, 0)
    feature, other = np.nonzero(correlation >= COACTIVE)
    found = cohesion(feature, other, correlation[feature, other], 37)

    # Its eight strongest companions are of three circles of three.
    assert found[36] < 0.3
    assert found[:9].tolist() == [1.0] * 9
