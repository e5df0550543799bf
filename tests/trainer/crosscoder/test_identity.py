"""Places and ids of features that several trainings have in common, through retraining."""

from dataclasses import replace

import pytest
import torch

from trainer.crosscoder.consensus import add_consensus
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.identity import identify
from trainer.crosscoder.normalisation import Normaliser

AXES = torch.eye(4)


def found(*directions: torch.Tensor, name: str = "b-given-a") -> Crosscoder:
    """A consensus whose encoders read b alone, along what they write; biases tell its features apart."""
    decoder = torch.stack(directions)
    features = len(decoder)
    return Crosscoder(
        {"a": 2, "b": 4},
        (Group(name, features, 0, ("a", "b"), ("b",)),),
        {
            f"encoder.a.{name}": torch.zeros(features, 2),
            f"encoder.b.{name}": decoder.clone(),
            f"encoder_bias.{name}": torch.arange(features) / 100,
            f"decoder.b.{name}": decoder,
            "decoder_bias.b": torch.zeros(4),
        },
        {"a": Normaliser(torch.zeros(2), 1.0), "b": Normaliser(torch.zeros(4), 1.0)},
        {name: torch.full((features,), 0.5)},
        trainings=4,
        recurrence={name: torch.full((features,), 3)},
    )


def near(direction: torch.Tensor) -> torch.Tensor:
    return direction + 0.1 * AXES.sum(dim=0)


def ids(crosscoder: Crosscoder) -> tuple[str, ...]:
    return crosscoder.identity["b-given-a"]


def test_a_first_training_keeps_its_order_and_names_each_direction():
    one = identify(found(AXES[0], AXES[1]), None)

    assert len(set(ids(one))) == 2 and all(len(name) == 16 for name in ids(one))
    assert one.weights["encoder_bias.b-given-a"].tolist() == pytest.approx([0, 0.01])
    assert ids(identify(found(AXES[1], AXES[0]), None)) == ids(one)[::-1], "an id is of the direction, not the place"


def test_a_feature_that_is_found_again_keeps_its_place_and_its_id():
    before = identify(found(AXES[0], AXES[1], AXES[2]), None)

    after = identify(found(near(AXES[2]), AXES[3], near(AXES[0])), before)

    assert after.groups[0].features == 4
    assert ids(after)[:3] == ids(before) and ids(after)[3] not in ids(before)
    assert after.weights["encoder_bias.b-given-a"].tolist() == pytest.approx([0.02, 0, 0, 0.01])
    assert after.recurrence["b-given-a"].tolist() == [3, 0, 3, 3]
    assert torch.equal(after.weights["decoder.b.b-given-a"][3], AXES[3])


def test_the_place_of_a_lost_feature_stays_empty_and_is_taken_when_it_comes_back():
    before = identify(found(AXES[0], AXES[1]), None)
    without = identify(found(AXES[1]), before)

    rows = {"a": torch.zeros(1, 2), "b": AXES.sum(dim=0)[None] * 5}
    assert without.encode(rows, compute=torch.float32).feature.tolist() == [1]
    again = identify(found(AXES[1], AXES[0]), without)
    assert ids(again) == ids(before)
    assert again.encode(rows, compute=torch.float32).feature.tolist() == [0, 1]


def test_the_same_training_once_more_changes_nothing():
    before = identify(found(AXES[0], AXES[1], AXES[2]), None)

    after = identify(found(AXES[0], AXES[1], AXES[2]), before)

    assert (after.groups, after.identity) == (before.groups, before.identity)
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())


def test_other_runs_lend_their_ids_once():
    other = identify(found(AXES[0], AXES[1]), None)

    mine = identify(found(AXES[3], near(AXES[1])), None, [other, other])

    assert ids(mine)[1] == ids(other)[1]
    assert ids(mine)[0] not in ids(other)


def test_a_group_that_is_not_found_any_more_stays_as_empty_places():
    before = identify(found(AXES[0]), None)
    nothing = replace(found(AXES[0], name="a-given-b"), groups=(), weights={"decoder_bias.b": torch.zeros(4)})

    after = identify(nothing, before)

    assert [group.features for group in after.groups] == [1]
    assert after.recurrence["b-given-a"].tolist() == [0]
    assert not after.weights["encoder.b.b-given-a"].any()


def test_ids_are_saved_with_the_crosscoder(tmp_path):
    one = identify(found(AXES[0], AXES[1]), None)
    add_consensus(one, replace(one, groups=())).save(tmp_path)

    assert Crosscoder.load(tmp_path).identity == one.identity
