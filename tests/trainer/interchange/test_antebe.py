"""An antebe DFC reconstructs as in its own code, and forbidden weights are checked."""

import json

import pytest
import torch

from tests.worlds.foreign_checkpoints import (
    BOTH,
    LEFT,
    OWN_FIRST,
    RIGHT,
    SHARED_FIRST,
    UNEVEN,
    assert_identical,
    assert_same_function,
    random_crosscoder,
    raw_rows,
)
from trainer.crosscoder.crosscoder import Codes
from trainer.errors import CrosscoderError
from trainer.interchange import antebe

WIDTH, FEATURES = 4, 9


def checkpoint(*, first=2, second=3):
    """What a training of theirs saves, with random weights and the forbidden ones at zero."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(2, FEATURES)
    mask[1, :first] = 0
    mask[0, first : first + second] = 0
    return {
        "W_enc": torch.randn(2, WIDTH, FEATURES, generator=generator) * mask[:, None],
        "b_enc": torch.randn(FEATURES, generator=generator),
        "W_dec": torch.randn(FEATURES, 2, WIDTH, generator=generator) * mask.T[:, :, None],
        "b_dec": torch.randn(2, WIDTH, generator=generator),
        "enc_mask": mask,
        "dec_mask": mask.T.contiguous(),
    }


def save(folder, entries, *, first=2, second=3, k=3):
    torch.save(entries, folder / "model.pt")
    settings = {"activation_dim": WIDTH, "dict_size": FEATURES, "k": k, "n_a": first, "n_b": second}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def by_their_formula(entries, rows, k):
    """Reconstruction of raw rows [row][model][neuron]: the k largest codes of each row, masked on both sides."""
    e = {name: value.double().tolist() for name, value in entries.items()}
    neurons, features = range(WIDTH), range(FEATURES)
    result = []
    for row in rows:
        codes = [
            max(
                0.0,
                e["b_enc"][f]
                + sum(row[m][i] * e["W_enc"][m][i][f] * e["enc_mask"][m][f] for m in (0, 1) for i in neurons),
            )
            for f in features
        ]
        kept = sorted(features, key=lambda f: -codes[f])[:k]
        result.append(
            [
                [
                    e["b_dec"][m][i] + sum(codes[f] * e["W_dec"][f][m][i] * e["dec_mask"][f][m] for f in kept)
                    for i in neurons
                ]
                for m in (0, 1)
            ]
        )
    return torch.tensor(result)


def strongest(codes, k):
    """The k largest codes of every row."""
    kept = []
    for row in range(codes.rows):
        mine = [at for at in range(len(codes.row)) if codes.row[at] == row]
        kept += sorted(sorted(mine, key=lambda at: -float(codes.value[at]))[:k])
    at = torch.tensor(kept)
    return Codes(codes.row[at], codes.feature[at], codes.value[at], codes.rows)


def assert_follows_formula(crosscoder, entries, k, codes):
    rows = raw_rows(crosscoder)
    expected = by_their_formula(entries, torch.stack(list(rows.values()), dim=1).double().tolist(), k)
    for index, found in enumerate(crosscoder.decode(codes).values()):
        torch.testing.assert_close(found, expected[:, index], rtol=1e-5, atol=1e-5)


def test_a_dfc_with_all_positive_features_reconstructs_by_its_own_formula_once_k_are_kept(tmp_path):
    entries = checkpoint()

    crosscoder = antebe.read(save(tmp_path, entries), sources=BOTH, threshold=0.0)

    assert [(g.name, g.first, g.stop, g.reads) for g in crosscoder.groups] == [
        ("left", 0, 2, LEFT),
        ("right", 2, 5, RIGHT),
        ("shared", 5, 9, BOTH),
    ]
    codes = strongest(crosscoder.encode(raw_rows(crosscoder), compute=torch.float32), k=3)
    assert_follows_formula(crosscoder, entries, 3, codes)


def test_a_crosscoder_without_exclusive_features_keeps_k_by_itself(tmp_path):
    entries = checkpoint(first=0, second=0)
    unmasked = {name: tensor for name, tensor in entries.items() if not name.endswith("_mask")}

    crosscoder = antebe.read(save(tmp_path, unmasked, first=0, second=0))

    codes = crosscoder.encode(raw_rows(crosscoder), compute=torch.float32)
    assert_follows_formula(crosscoder, entries, 3, codes)


def test_the_strongest_of_all_groups_together_need_a_threshold_instead(tmp_path):
    with pytest.raises(CrosscoderError, match=r"keeps the 3 strongest of all features in each row.*Give a threshold"):
        antebe.read(save(tmp_path, checkpoint()))


@pytest.mark.parametrize(
    ("name", "index", "what"),
    [("W_enc", (1, 2, 0), "encoder of 'source-1'"), ("W_dec", (3, 0, 1), "decoder of 'source-0'")],
)
def test_a_forbidden_weight_that_is_not_exactly_zero_is_refused(tmp_path, name, index, what):
    entries = checkpoint()
    entries[name][index] = 1e-8

    with pytest.raises(CrosscoderError, match=f"{what}.*must be exactly zero, and reaches 1e-08"):
        antebe.read(save(tmp_path, entries), threshold=0.0)


def test_masks_that_contradict_the_settings_are_noticed(tmp_path):
    with pytest.raises(CrosscoderError, match="'enc_mask' does not leave 1 features to the first source and 3"):
        antebe.read(save(tmp_path, checkpoint(), first=1))


@pytest.mark.parametrize(("first", "second"), [(2, 3), (0, 0)])
def test_a_round_trip_of_relu_is_exact_to_the_bit(tmp_path, first, second):
    save(tmp_path, checkpoint(first=first, second=second), first=first, second=second, k=FEATURES)
    crosscoder = antebe.read(tmp_path)

    antebe.write(crosscoder, tmp_path / "again")

    assert json.loads((tmp_path / "again" / "config.json").read_text())["k"] == FEATURES
    assert_identical(antebe.read(tmp_path / "again"), crosscoder)


def test_a_round_trip_of_kept_features_is_exact_to_the_bit(tmp_path):
    crosscoder = random_crosscoder(rank_by="activation", row_k={"shared": 4})

    antebe.write(crosscoder, tmp_path)

    assert_identical(antebe.read(tmp_path), crosscoder)


def test_normalisation_and_ranking_are_folded_into_the_weights(tmp_path):
    crosscoder = random_crosscoder(normalisation=UNEVEN, rank_by="largest_norm", row_k={"shared": 4})

    antebe.write(crosscoder, tmp_path)

    assert_same_function(antebe.read(tmp_path), crosscoder)


def test_exclusive_features_come_first_in_the_file(tmp_path):
    crosscoder = random_crosscoder(SHARED_FIRST, normalisation=UNEVEN)

    antebe.write(crosscoder, tmp_path)

    order = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    assert_same_function(antebe.read(tmp_path), crosscoder, order)


THREE = {"left": 4, "middle": 4, "right": 4}


@pytest.mark.parametrize(
    ("crosscoder", "options", "message"),
    [
        (random_crosscoder(OWN_FIRST, threshold=1.0), {}, r"Say how many to keep instead \(k\)"),
        (random_crosscoder(), {"k": 10}, "cannot keep 10 of 9 features"),
        (random_crosscoder(widths={"left": 4, "right": 5}), {}, "left 4, right 5"),
        (random_crosscoder(differences={"left": ("after", "before")}), {}, "'left' is 'after' minus 'before'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, crosscoder, options, message):
    with pytest.raises(CrosscoderError, match=message):
        antebe.write(crosscoder, tmp_path / "new", **options)

    assert not (tmp_path / "new").exists()
