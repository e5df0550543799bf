"""Scoring gives the truth full marks, chance none, and names every kind of wrong call."""

import pytest
import torch

from trainer.toy.scoring import Calls, Found, Truth, recall
from trainer.toy.world import WorldPlan, random_world

AXES = torch.eye(6)


def small_truth() -> Truth:
    """Six concepts on the axes: 0 only in the first source, 1 only in the second, 2 to 5 in both."""
    first, second = AXES.clone(), AXES.clone()
    first[1], second[0] = 0, 0
    return Truth({"first": first, "second": second}, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))


def dictionary(*features: tuple[tuple[int, float] | None, tuple[int, float] | None]) -> dict[str, torch.Tensor]:
    """Per feature and source, the axis it points along and its length; None for a zero decoder."""
    decoders = {"first": torch.zeros(len(features), 6), "second": torch.zeros(len(features), 6)}
    for row, parts in enumerate(features):
        for source, part in zip(decoders, parts, strict=True):
            if part is not None:
                decoders[source][row, part[0]] = part[1]
    return decoders


@pytest.mark.parametrize(
    "plan", [WorldPlan(widths=(128, 192)), WorldPlan(widths=(96, 128, 160), exclusive_share=0.06, pair_share=0.06)]
)
def test_the_true_directions_score_full_marks_in_any_order_and_at_any_length(plan):
    world = random_world(plan, seed=0)
    truth = Truth(world.vectors, world.firing.decay)
    order, length = torch.randperm(512), torch.rand(512, 1) + 0.5

    found = Found(truth, {source: (length * vectors)[order] for source, vectors in world.vectors.items()})

    for call in (found.norm_call(), found.declared_call()):
        calls = found.calls(call)
        assert calls == Calls(
            right=512 - int(truth.holds.all(dim=1).sum()), too_narrow=0, nothing=0, shared=int(truth.shared.sum())
        )
        assert calls.precision == 1.0 and calls.false_exclusive_rate == 0.0
        assert bool(found.recovered_as_called(call).all())
    assert recall(found.recovered, truth.exclusive) == recall(found.recovered, truth.shared) == 1.0


def test_random_directions_find_nothing():
    world = random_world(WorldPlan(widths=(128, 192)), seed=0)
    truth = Truth(world.vectors, world.firing.decay)

    # Not the test's own seed, which is the world's: the first numbers from it are the world's directions.
    chance = torch.Generator().manual_seed(99)
    decoders = {source: torch.randn(1024, v.shape[1], generator=chance) for source, v in world.vectors.items()}
    found = Found(truth, decoders)

    assert not bool(found.recovered.any()) and not bool(found.recovered_split.any())
    assert found.calls(found.norm_call()).shared == 0


def test_calling_everything_exclusive_is_wrong_about_every_shared_concept():
    world = random_world(WorldPlan(), seed=0)
    truth = Truth(world.vectors, world.firing.decay)

    found = Found(truth, {"source-1": world.vectors["source-1"], "source-2": torch.zeros(512, 128)})

    calls = found.calls(found.norm_call())
    # 13 belong to the first source alone, and the decoders of the second's 13 are zero everywhere.
    assert (calls.right, calls.too_narrow) == (13, 486)
    assert calls.false_exclusive_rate == 1.0
    assert int(found.recovered.sum()) == 13


def test_two_features_for_one_shared_concept_recover_it_only_in_parts():
    truth = small_truth()

    found = Found(truth, dictionary(((2, 1.0), None), (None, (2, 1.0)), ((3, 1.0), (3, 1.0))))

    assert found.recovered.tolist() == [False, False, False, True, False, False]
    assert found.recovered_split.tolist() == [False, False, True, True, False, False]
    assert found.calls(found.declared_call()) == Calls(right=0, too_narrow=2, nothing=0, shared=3)


def test_a_source_counts_by_norm_from_a_quarter_of_the_largest_on():
    truth = small_truth()

    found = Found(truth, dictionary(((0, 4.1), (5, 1.0)), ((0, 3.9), (5, 1.0)), ((5, 1.0), (1, 4.1))))

    assert found.norm_call().tolist() == [[True, False], [True, True], [False, True]]
    assert found.declared_call().tolist() == [[True, True]] * 3
    # The first and the last are right; that they are about concept 5 where they hardly write does not matter.
    assert found.calls(found.norm_call()) == Calls(right=2, too_narrow=0, nothing=0, shared=1)


def test_a_call_for_the_wrong_source_and_one_for_no_concept_match_nothing():
    truth = small_truth()
    between = dictionary(((2, 1.0), None))
    between["first"][0, 3] = 1.0

    found = Found(
        truth, {source: torch.cat([between[source], dictionary((None, (0, 1.0)))[source]]) for source in between}
    )

    assert found.calls(found.norm_call()) == Calls(right=0, too_narrow=0, nothing=2, shared=0)
    assert found.calls(found.norm_call()).precision == 0.0


def test_among_three_sources_a_call_for_one_is_too_narrow_for_a_pair_and_a_call_for_a_pair_too_narrow_for_all():
    eye = torch.eye(3)
    second, third = eye.clone(), eye.clone()
    third[0] = 0
    truth = Truth({"a": eye, "b": second, "c": third}, torch.ones(3))
    nothing = torch.zeros(3, 3)
    nothing[2] = eye[2]
    decoders = {"a": eye, "b": torch.stack([torch.zeros(3), eye[1], eye[2]]), "c": nothing}

    found = Found(truth, decoders)

    assert found.norm_call().tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert found.calls(found.norm_call()) == Calls(right=0, too_narrow=2, nothing=0, shared=3)


def test_features_that_never_fire_are_left_out():
    truth = small_truth()
    decoders = dictionary(((0, 1.0), None), (None, (1, 1.0)))

    found = Found(truth, decoders, alive=torch.tensor([True, False]))

    assert found.recovered.tolist() == [True, False, False, False, False, False]
    assert found.calls(found.norm_call()).right == 1


def test_thirds_are_counted_over_all_concepts_by_how_often_they_fire():
    truth = small_truth()
    found = Found(truth, dictionary(((2, 1.0), (2, 1.0)), ((5, 2.0), (5, 1.0))))

    recalls = [recall(found.recovered, truth.shared & truth.third(name)) for name in ("rare", "middle", "frequent")]

    assert recalls == [None, 0.5, 0.5]
    assert found.calls(found.norm_call(), among=truth.third("frequent")).shared == 1
