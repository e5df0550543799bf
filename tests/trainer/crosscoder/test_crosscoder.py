"""Encoding and decoding against values computed by hand, and inconsistent files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_store import tiny_crosscoder
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.evaluation.reconstruction import Tally


@pytest.fixture
def crosscoder() -> Crosscoder:
    """Two sources of widths 2 and 3; feature 0 in both, feature 1 in `a` alone, feature 2 in `b` alone.

    Raw `a` is half of normalised `a` plus (1, 1); raw `b` is a tenth of normalised `b`.
    """
    groups = (
        Group("shared", 1, 0, ("a", "b"), ("a", "b")),
        Group("a", 1, 1, ("a",), ("a",)),
        Group("b", 1, 2, ("b",), ("b",)),
    )
    tensor = torch.tensor
    weights = {
        "encoder.a.shared": tensor([[1.0, 0.0]]),
        "encoder.b.shared": tensor([[1.0, 0.0, 0.0]]),
        "encoder_bias.shared": tensor([-1.0]),
        "decoder.a.shared": tensor([[2.0, 0.0]]),
        "decoder.b.shared": tensor([[0.0, 1.0, 0.0]]),
        "encoder.a.a": tensor([[0.0, 1.0]]),
        "encoder_bias.a": tensor([0.0]),
        "decoder.a.a": tensor([[0.0, 3.0]]),
        "encoder.b.b": tensor([[0.0, 0.0, 1.0]]),
        "encoder_bias.b": tensor([0.5]),
        "decoder.b.b": tensor([[0.0, 0.0, 0.5]]),
        "decoder_bias.a": tensor([0.0, 0.0]),
        "decoder_bias.b": tensor([0.0, 0.0, 7.0]),
    }
    return Crosscoder(
        widths={"a": 2, "b": 3},
        groups=groups,
        weights=weights,
        normaliser={"a": Normaliser(tensor([1.0, 1.0]), 2.0), "b": Normaliser(torch.zeros(3), 10.0)},
        threshold={"shared": tensor(1.5), "a": tensor(6.0), "b": tensor(0.0)},
    )


ROWS = {"a": torch.tensor([[2.0, 2.5], [1.0, 1.5]]), "b": torch.tensor([[0.1, 0.0, 0.2], [0.0, 0.0, -0.1]])}
"""Normalised: a = (2, 3) and (0, 1); b = (1, 0, 2) and (0, 0, -1)."""


def test_a_feature_is_active_where_its_activation_times_its_largest_norm_exceeds_the_threshold(crosscoder):
    codes = crosscoder.encode(ROWS, compute=torch.float32)

    # Feature 0: 2 + 1 - 1 = 2, times norm 2 = 4 > 1.5; second row -1. Feature 1: 3 * 3 = 9 > 6; then 1 * 3 = 3 < 6.
    # Feature 2: 2 + 0.5 = 2.5 > 0; then -1 + 0.5 < 0.
    assert codes.row.tolist() == [0, 0, 0]
    assert codes.feature.tolist() == [0, 1, 2]
    assert codes.value.tolist() == [2.0, 3.0, 2.5]
    assert codes.rows == 2


def test_decoding_adds_directions_and_bias_and_returns_to_raw_space(crosscoder):
    rebuilt = crosscoder.decode(crosscoder.encode(ROWS, compute=torch.float32))

    # Normalised a: (2*2, 3*3) = (4, 9), halved plus 1; b: (0, 2, 2.5*0.5 + 7), over ten.
    torch.testing.assert_close(rebuilt["a"], torch.tensor([[3.0, 5.5], [1.0, 1.0]]))
    torch.testing.assert_close(rebuilt["b"], torch.tensor([[0.0, 0.2, 0.825], [0.0, 0.0, 0.7]]))


def test_directions_of_a_source_are_zero_where_a_feature_does_not_write_or_read(crosscoder):
    assert crosscoder.decoder("a").tolist() == [[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]
    assert crosscoder.encoder("b").tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_saved_crosscoder_is_loaded_exactly_from_the_public_layout(crosscoder, tmp_path):
    crosscoder.save(tmp_path)
    loaded = Crosscoder.load(tmp_path)

    tensors = load_file(tmp_path / "crosscoder.safetensors")
    assert tensors["encoder.b.shared"].shape == (3, 1) and tensors["decoder.b.shared"].shape == (1, 3)
    assert loaded.groups == crosscoder.groups and loaded.widths == crosscoder.widths
    assert all(torch.equal(loaded.weights[name], weight) for name, weight in crosscoder.weights.items())
    assert loaded.normaliser["a"].scale == 2.0 and loaded.threshold["a"] == 6.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("decoder.a.a"), r"'decoder.a.a' has shape None, expected \(1, 2\)"),
        (
            lambda tensors: tensors.update({"decoder.b.a": torch.zeros(1, 3)}),
            r"'decoder.b.a' has shape \(1, 3\), expected None",
        ),
        (lambda tensors: tensors.update({"encoder.a.a": torch.zeros(5, 1)}), r"shape \(1, 5\), expected \(1, 2\)"),
        (lambda tensors: tensors.pop("threshold.b"), "no threshold for b"),
    ],
)
def test_a_missing_misshapen_or_unexpected_tensor_is_named(crosscoder, tmp_path, change, message):
    crosscoder.save(tmp_path)
    tensors = load_file(tmp_path / "crosscoder.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "crosscoder.safetensors")
    with pytest.raises(CrosscoderError, match=message):
        Crosscoder.load(tmp_path)


def test_damaged_files_and_newer_versions_are_rejected(crosscoder, tmp_path):
    with pytest.raises(CrosscoderError, match="holds no trained crosscoder"):
        Crosscoder.load(tmp_path)
    crosscoder.save(tmp_path)
    description = json.loads((tmp_path / "crosscoder.json").read_text())
    (tmp_path / "crosscoder.json").write_text(json.dumps(description | {"version": 9}))
    with pytest.raises(CrosscoderError, match=r"is not .crossdiff\.crosscoder. version 1"):
        Crosscoder.load(tmp_path)
    (tmp_path / "crosscoder.json").write_text("{")
    with pytest.raises(CrosscoderError, match="damaged"):
        Crosscoder.load(tmp_path)


def test_evaluation_computes_variance_explained_in_total_and_per_row(crosscoder):
    tally = Tally(crosscoder, {"a": torch.tensor([1.5, 2.0]), "b": torch.zeros(3)})
    tally.add(ROWS, crosscoder.encode(ROWS, compute=torch.float32))
    found = {(m["source"], m["measure"]): m["value"] for m in tally.measures()}

    # Errors of a: (3 - 2)^2 + (5.5 - 2.5)^2 = 10 and 0.25; spread about (1.5, 2): 0.5 each.
    assert found["a", "variance_explained"] == pytest.approx(1 - 10.25 / 1.0)
    assert found["a", "variance_explained_per_row"] == pytest.approx(((1 - 20) + (1 - 0.5)) / 2)
    assert found[None, "l0"] == 1.5
    assert found[None, "dead_share"] == 0
    assert found[None, "alive_share.a"] == 1 and found[None, "l0.a"] == 0.5


@pytest.mark.parametrize("features", [[], [0], [3, 1, 1], list(range(4))])
def test_directions_of_some_features_are_rows_of_those_of_all(features):
    tiny = tiny_crosscoder()
    for source in tiny.sources:
        for directions in (tiny.decoder, tiny.encoder):
            assert torch.equal(directions(source, np.array(features, int)), directions(source)[features])
