"""The true directions get perfect scores, random ones none, and every kind of wrong call is counted."""

import pytest
import torch

from trainer.toy.scoring import CallCounts, DictionaryMatches, GroundTruth, recall
from trainer.toy.world import WorldPlan, random_world

AXES = torch.eye(6)


def small_truth() -> GroundTruth:
    """Six concepts on the axes: 0 only in the first source, 1 only in the second, 2 to 5 in both."""
    first, second = AXES.clone(), AXES.clone()
    first[1], second[0] = 0, 0
    return GroundTruth({"first": first, "second": second}, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))


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
def test_the_true_directions_score_perfectly_in_any_order_and_at_any_length(plan):
    world = random_world(plan, seed=0)
    truth = GroundTruth(world.vectors, world.firing.decay)
    order, length = torch.randperm(512), torch.rand(512, 1) + 0.5

    matches = DictionaryMatches(truth, {source: (length * vectors)[order] for source, vectors in world.vectors.items()})

    for call in (matches.calls_by_norm(), matches.calls_by_group()):
        calls = matches.count_calls(call)
        assert calls == CallCounts(
            right=512 - int(truth.holds.all(dim=1).sum()), too_narrow=0, nothing=0, shared=int(truth.shared.sum())
        )
        assert calls.precision == 1.0 and calls.false_exclusive_rate == 0.0
        assert bool(matches.recovered_as_called(call).all())
    assert recall(matches.recovered, truth.exclusive) == recall(matches.recovered, truth.shared) == 1.0


def test_random_directions_match_nothing():
    world = random_world(WorldPlan(widths=(128, 192)), seed=0)
    truth = GroundTruth(world.vectors, world.firing.decay)

    # Not the world's seed, from which the first samples are the world's directions.
    generator = torch.Generator().manual_seed(99)
    decoders = {source: torch.randn(1024, v.shape[1], generator=generator) for source, v in world.vectors.items()}
    matches = DictionaryMatches(truth, decoders)

    assert not bool(matches.recovered.any()) and not bool(matches.recovered_split.any())
    assert matches.count_calls(matches.calls_by_norm()).shared == 0


def test_calling_everything_exclusive_is_wrong_about_every_shared_concept():
    world = random_world(WorldPlan(), seed=0)
    truth = GroundTruth(world.vectors, world.firing.decay)

    matches = DictionaryMatches(truth, {"source-1": world.vectors["source-1"], "source-2": torch.zeros(512, 128)})

    calls = matches.count_calls(matches.calls_by_norm())
    # 13 belong to the first source alone, and the decoders of the second's 13 are zero everywhere.
    assert (calls.right, calls.too_narrow) == (13, 486)
    assert calls.false_exclusive_rate == 1.0
    assert int(matches.recovered.sum()) == 13


def test_two_features_for_one_shared_concept_recover_it_only_in_parts():
    truth = small_truth()

    matches = DictionaryMatches(truth, dictionary(((2, 1.0), None), (None, (2, 1.0)), ((3, 1.0), (3, 1.0))))

    assert matches.recovered.tolist() == [False, False, False, True, False, False]
    assert matches.recovered_split.tolist() == [False, False, True, True, False, False]
    assert matches.count_calls(matches.calls_by_group()) == CallCounts(right=0, too_narrow=2, nothing=0, shared=3)


def test_a_source_counts_by_norm_from_a_quarter_of_the_largest_on():
    truth = small_truth()

    matches = DictionaryMatches(truth, dictionary(((0, 4.1), (5, 1.0)), ((0, 3.9), (5, 1.0)), ((5, 1.0), (1, 4.1))))

    assert matches.calls_by_norm().tolist() == [[True, False], [True, True], [False, True]]
    assert matches.calls_by_group().tolist() == [[True, True]] * 3
    # The first and the last are right; that they are about concept 5 where they hardly write does not matter.
    assert matches.count_calls(matches.calls_by_norm()) == CallCounts(right=2, too_narrow=0, nothing=0, shared=1)


def test_a_call_for_the_wrong_source_and_one_for_no_concept_match_nothing():
    truth = small_truth()
    between = dictionary(((2, 1.0), None))
    between["first"][0, 3] = 1.0

    matches = DictionaryMatches(
        truth, {source: torch.cat([between[source], dictionary((None, (0, 1.0)))[source]]) for source in between}
    )

    assert matches.count_calls(matches.calls_by_norm()) == CallCounts(right=0, too_narrow=0, nothing=2, shared=0)
    assert matches.count_calls(matches.calls_by_norm()).precision == 0.0


def test_among_three_sources_a_call_for_one_is_too_narrow_for_a_pair_and_a_call_for_a_pair_too_narrow_for_all():
    eye = torch.eye(3)
    second, third = eye.clone(), eye.clone()
    third[0] = 0
    truth = GroundTruth({"a": eye, "b": second, "c": third}, torch.ones(3))
    nothing = torch.zeros(3, 3)
    nothing[2] = eye[2]
    decoders = {"a": eye, "b": torch.stack([torch.zeros(3), eye[1], eye[2]]), "c": nothing}

    matches = DictionaryMatches(truth, decoders)

    assert matches.calls_by_norm().tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert matches.count_calls(matches.calls_by_norm()) == CallCounts(right=0, too_narrow=2, nothing=0, shared=3)


def test_features_that_never_fire_are_left_out():
    truth = small_truth()
    decoders = dictionary(((0, 1.0), None), (None, (1, 1.0)))

    matches = DictionaryMatches(truth, decoders, alive=torch.tensor([True, False]))

    assert matches.recovered.tolist() == [True, False, False, False, False, False]
    assert matches.count_calls(matches.calls_by_norm()).right == 1


def test_thirds_are_counted_over_all_concepts_by_how_often_they_fire():
    truth = small_truth()
    matches = DictionaryMatches(truth, dictionary(((2, 1.0), (2, 1.0)), ((5, 2.0), (5, 1.0))))

    recalls = [recall(matches.recovered, truth.shared & truth.third(name)) for name in ("rare", "middle", "frequent")]

    assert recalls == [None, 0.5, 0.5]
    assert matches.count_calls(matches.calls_by_norm(), among=truth.third("frequent")).shared == 1
