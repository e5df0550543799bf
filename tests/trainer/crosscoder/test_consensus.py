"""What several trainings have in common, on directions and activations made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from trainer.crosscoder.consensus import add_consensus, clusters, consensus, representative
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def alike(one, other, i, j):
    return np.ones(len(i))


def test_a_feature_of_each_training_is_one_cluster():
    directions = [unit((1, 0, 0), (0, 1, 0)), unit((0, 1, 0.1), (1, 0.1, 0)), unit((1, 0, 0.1), (0, 0, 1))]

    found = clusters(directions, alike)

    assert {frozenset(one.items()) for one in found} == {
        frozenset({(0, 0), (1, 1), (2, 0)}),
        frozenset({(0, 1), (1, 0)}),
        frozenset({(2, 1)}),
    }


def test_two_features_of_one_training_are_never_in_one_cluster():
    # Both of the first training are nearest to the one of the second; only the nearer one is its nearest.
    directions = [unit((1, 0.02), (1, 0.2)), unit((1, 0), (0, 1))]

    found = clusters(directions, alike)

    assert {frozenset(one.items()) for one in found} == {
        frozenset({(0, 0), (1, 0)}),
        frozenset({(0, 1)}),
        frozenset({(1, 1)}),
    }


def test_chains_of_similar_features_do_not_join_two_of_a_training():
    """0.0 ~ 1.0 ~ 2.0 ~ 0.1 by angles of 20 degrees: the third link would put both of training 0 together."""
    angle = [np.deg2rad(a) for a in (0, 20, 38, 60)]
    at = [(float(np.cos(a)), float(np.sin(a))) for a in angle]
    directions = [unit(at[0], at[3]), unit(at[1], (-1, 0)), unit(at[2], (0, -1))]

    for one in clusters(directions, alike):
        assert len({training for training, _ in one.items()}) == len(one)


def test_similar_directions_that_fire_on_different_rows_are_two_features():
    directions = [unit((1, 0)), unit((1, 0))]

    found = clusters(directions, lambda _one, _other, i, _j: np.full(len(i), 0.4))

    assert len(found) == 2


def test_the_member_in_the_middle_represents_a_cluster():
    directions = [unit((1, 0.3)), unit((1, 0)), unit((1, -0.3))]

    assert representative({0: 0, 1: 0, 2: 0}, directions) == (1, 0)


def trained(decoder: torch.Tensor, bias: float) -> Crosscoder:
    """A residual dictionary of `b` given `a`, whose encoders are its decoders."""
    features = len(decoder)
    group = Group("b-given-a", features, 0, ("a", "b"), ("b",))
    return Crosscoder(
        {"a": 2, "b": 3},
        (group,),
        {
            "encoder.a.b-given-a": torch.zeros(features, 2),
            "encoder.b.b-given-a": decoder,
            "encoder_bias.b-given-a": torch.full((features,), bias),
            "decoder.b.b-given-a": decoder,
            "decoder_bias.b": torch.zeros(3),
        },
        {name: Normaliser(torch.zeros(width), 1.0) for name, width in (("a", 2), ("b", 3))},
        {"b-given-a": torch.tensor(0.5)},
    )


def activations(*columns: tuple[float, ...]) -> sp.csc_array:
    return sp.csc_array(np.array(columns, float).T)


@pytest.fixture
def trainings():
    """The first feature is in all, the second of the first is the third of the second; the rest is alone."""
    one = trained(unit((1, 0, 0), (0, 1, 0), (0, 0, 1)), 0.1)
    two = trained(unit((1, 0.1, 0), (-1, 0, 0), (0.1, 1, 0)), 0.2)
    three = trained(unit((1, -0.1, 0), (0, -1, 0), (0, 0, -1)), 0.3)
    fires = activations((1, 0, 2, 0), (0, 3, 0, 0), (0, 0, 0, 1))
    return [one, two, three], [fires, fires[:, [0, 2, 1]], fires]


def test_features_come_in_order_of_recurrence_from_the_training_that_represents_them(trainings):
    found = consensus(*trainings, found_in=2)

    assert found.trainings == 3
    assert found.recurrence["b-given-a"].tolist() == [3, 2]
    assert found.groups == (replace(trainings[0][0].groups[0], features=2),)
    assert found.weights["encoder_bias.b-given-a"].tolist() == pytest.approx([0.1, 0.1])
    assert torch.equal(found.weights["decoder.b.b-given-a"], unit((1, 0, 0), (0, 1, 0)))
    assert found.threshold["b-given-a"].tolist() == [0.5, 0.5]


def test_what_no_other_training_has_can_be_kept_or_be_nothing(trainings):
    assert consensus(*trainings, found_in=1).features == 3 + 1 + 2
    strangers = [trainings[0][0], trained(unit((-1, 0, 0), (0, -1, 0), (0, 0, -1)), 0.0)]
    assert consensus(strangers, trainings[1][:2], found_in=2).groups == ()


def shared_crosscoder(aggregation: str) -> Crosscoder:
    generator = torch.Generator().manual_seed(0)
    blocks = {
        f"{kind}.{name}.shared": torch.randn(4, width, generator=generator)
        for kind in ("encoder", "decoder")
        for name, width in (("a", 2), ("b", 3))
    }
    return Crosscoder(
        {"a": 2, "b": 3},
        (Group("shared", 4, 0, ("a", "b"), ("a", "b")),),
        blocks
        | {"encoder_bias.shared": torch.zeros(4), "decoder_bias.a": torch.ones(2), "decoder_bias.b": torch.ones(3)},
        {name: Normaliser(torch.zeros(width), 1.0) for name, width in (("a", 2), ("b", 3))},
        {"shared": torch.tensor(0.1)},
        aggregation=aggregation,
    )


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_features_beside_a_crosscoder_fire_as_before_and_change_no_reconstruction(trainings, aggregation, tmp_path):
    crosscoder, found = shared_crosscoder(aggregation), consensus(*trainings, found_in=2)
    rows = {
        name: torch.randn(64, width, generator=torch.Generator().manual_seed(1)) for name, width in found.widths.items()
    }

    both = add_consensus(crosscoder, found)
    codes = both.encode(rows, compute=torch.float32)

    assert both.features == 6
    alone, before = found.encode(rows, compute=torch.float32), crosscoder.encode(rows, compute=torch.float32)
    added = codes.feature >= 4
    assert torch.equal(codes.feature[added] - 4, alone.feature) and added.any()
    assert torch.equal(codes.row[added], alone.row)
    torch.testing.assert_close(codes.value[added], alone.value)
    for name, value in crosscoder.reconstruct(rows, before).items():
        torch.testing.assert_close(both.reconstruct(rows, codes)[name], value)
    assert both.reconstructing.features == 4
    both.save(tmp_path)
    loaded = Crosscoder.load(tmp_path)
    assert loaded.groups == both.groups and loaded.trainings == 3
    assert loaded.recurrence["b-given-a"].tolist() == [3, 2]
    both.reconstructing.save(tmp_path)
    assert Crosscoder.load(tmp_path).groups == crosscoder.groups
