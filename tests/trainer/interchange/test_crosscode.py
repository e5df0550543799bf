"""A crosscode checkpoint reconstructs by its own formula when read and when written."""

import math

import pytest
import torch
import yaml

from tests.worlds.foreign_checkpoints import (
    OWN_FIRST,
    UNEVEN,
    assert_identical,
    assert_same_function,
    random_crosscoder,
    raw_rows,
)
from trainer.errors import CrosscoderError
from trainer.interchange import crosscode

MODELS, HOOKPOINTS, WIDTH, FEATURES = 2, 2, 4, 9
RELU = {"classname": "ReLUActivation", "cfg": {}}
TOPK = {"classname": "TopkActivation", "cfg": {"k": 3}}
BATCH_TOPK = {"classname": "BatchTopkActivation", "cfg": {"k_per_example": 3}}
JUMPRELU = {"classname": "AnthropicSTEJumpReLUActivation", "cfg": {"size": FEATURES, "bandwidth": 0.1}}


def checkpoint(*, factors=None, biases=True, thresholds=False):
    """What a training of theirs saves, with random weights."""
    generator = torch.Generator().manual_seed(7)
    axes = (MODELS, HOOKPOINTS, WIDTH)
    entries = {
        "_W_enc_XiDiL": torch.randn(*axes, FEATURES, generator=generator),
        "_W_dec_LXoDo": torch.randn(FEATURES, *axes, generator=generator),
        "is_folded": torch.tensor(factors is not None),
        "folded_scaling_factors_in_Xi": torch.zeros(axes[:2]) if factors is None else torch.tensor(factors),
        "folded_scaling_factors_out_Xo": torch.zeros(axes[:2]) if factors is None else torch.tensor(factors),
    }
    if biases:
        entries["b_enc_L"] = torch.randn(FEATURES, generator=generator)
        entries["_b_dec_XoDo"] = torch.randn(*axes, generator=generator)
    if thresholds:
        entries["_activation_fn.log_threshold_L"] = torch.randn(FEATURES, generator=generator)
    return entries


def save(folder, entries, activation):
    torch.save(entries, folder / "model.pt")
    settings = {"n_models": MODELS, "n_hookpoints": HOOKPOINTS, "d_model": WIDTH, "n_latents": FEATURES}
    (folder / "model_cfg.yaml").write_text(yaml.dump({**settings, "activation_fn": activation, "dtype": "float32"}))
    return folder


def by_their_formula(entries, rows, kind):
    """Reconstruction of raw rows [row][model][hookpoint][neuron] by a crosscoder of theirs."""
    e = {name: value.double().tolist() for name, value in entries.items()}
    indexes = [
        (m, p, i) for m in range(len(e["_W_enc_XiDiL"])) for p in range(len(e["_W_enc_XiDiL"][0])) for i in range(WIDTH)
    ]
    features = range(len(e["_W_dec_LXoDo"]))
    result = []
    for row in rows:
        pre = [sum(row[m][p][i] * e["_W_enc_XiDiL"][m][p][i][f] for m, p, i in indexes) for f in features]
        pre = [value + (e["b_enc_L"][f] if "b_enc_L" in e else 0.0) for f, value in enumerate(pre)]
        if kind == "relu":
            codes = [max(value, 0.0) for value in pre]
        elif kind == "jumprelu":
            bound = [math.exp(value) for value in e["_activation_fn.log_threshold_L"]]
            codes = [value if value > bound[f] else 0.0 for f, value in enumerate(pre)]
        else:
            kept = sorted(features, key=lambda f: -pre[f])[:3]
            codes = [value if f in kept else 0.0 for f, value in enumerate(pre)]
        y = {
            index: sum(codes[f] * e["_W_dec_LXoDo"][f][index[0]][index[1]][index[2]] for f in features)
            for index in indexes
        }
        if "_b_dec_XoDo" in e:
            y = {(m, p, i): value + e["_b_dec_XoDo"][m][p][i] for (m, p, i), value in y.items()}
        result.append([y[index] for index in indexes])
    return torch.tensor(result)


def assert_follows_formula(crosscoder, entries, kind):
    """Our reconstruction is that of the formula; the scaling stands in the weights, so rows are raw on both sides."""
    rows = raw_rows(crosscoder)
    axes = tuple(entries["_W_enc_XiDiL"].shape[:2])
    stacked = torch.stack(list(rows.values()), dim=1).reshape(-1, *axes, WIDTH)
    expected = by_their_formula(entries, stacked.double().tolist(), kind)
    codes = crosscoder.encode(rows, compute=torch.float32)
    found = torch.cat(list(crosscoder.decode(codes).values()), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert 0 < len(codes.row) < codes.rows * crosscoder.features


@pytest.mark.parametrize("factors", [None, [[0.25, 0.5], [3.0, 0.1]]])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_every_kind_reconstructs_by_its_own_formula(tmp_path, factors, kind):
    entries = checkpoint(factors=factors, thresholds=kind == "jumprelu")
    if kind == "topk":
        # They keep negative activations where fewer than k are positive; there are enough here.
        entries["b_enc_L"] += 6
    activation = {"relu": RELU, "jumprelu": JUMPRELU, "topk": TOPK}[kind]

    crosscoder = crosscode.read(save(tmp_path, entries, activation), sources=("a0", "a1", "b0", "b1"))

    assert crosscoder.sources == ("a0", "a1", "b0", "b1")
    assert_follows_formula(crosscoder, entries, kind)


def test_folded_factors_become_scales_so_that_decoders_of_sources_compare(tmp_path):
    factors = [[0.25, 0.5], [2.0, 0.125]]
    entries = checkpoint(factors=factors)

    crosscoder = crosscode.read(save(tmp_path, entries, RELU))

    assert [normaliser.scale for normaliser in crosscoder.normaliser.values()] == [0.25, 0.5, 2.0, 0.125]
    assert torch.equal(crosscoder.decoder("source-2"), entries["_W_dec_LXoDo"][:, 1, 0] * 2.0)


def test_a_checkpoint_without_biases_has_none(tmp_path):
    entries = checkpoint(biases=False)

    crosscoder = crosscode.read(save(tmp_path, entries, RELU))

    assert_follows_formula(crosscoder, entries, "relu")


def test_the_strongest_of_a_batch_need_a_threshold(tmp_path):
    save(tmp_path, checkpoint(), BATCH_TOPK)

    with pytest.raises(CrosscoderError, match=r"saves no threshold. Give one"):
        crosscode.read(tmp_path)
    assert crosscode.read(tmp_path, threshold=1.5).threshold["shared"] == 1.5


@pytest.mark.parametrize("kind", ["GroupMaxActivation", None])
def test_an_activation_function_that_is_not_known_is_named(tmp_path, kind):
    save(tmp_path, checkpoint(), {"classname": kind, "cfg": {}})

    with pytest.raises(CrosscoderError, match=f"activation function as {kind}"):
        crosscode.read(tmp_path)


def test_factors_that_differ_between_inputs_and_outputs_are_refused(tmp_path):
    entries = checkpoint(factors=[[0.25, 0.5], [2.0, 0.125]])
    entries["folded_scaling_factors_out_Xo"][0, 0] = 1.0

    with pytest.raises(CrosscoderError, match="differ between inputs and outputs"):
        crosscode.read(save(tmp_path, entries, RELU))


@pytest.mark.parametrize("options", [{}, {"rank_by": "activation", "row_k": {"shared": 3}}])
def test_a_round_trip_is_exact_to_the_bit(tmp_path, options):
    crosscoder = random_crosscoder(normalisation={"left": (0.0, 0.25), "right": (0.0, 4.0)}, **options)

    crosscode.write(crosscoder, tmp_path)

    assert_identical(crosscode.read(tmp_path), crosscoder)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.3, "rank_by": "largest_norm"},
        {"threshold": {"shared": torch.tensor([0.0, 2.0, 0.5, 0.1, 3.0, 0.0, 1.0, 1.0, 1.0])}},
        {"rank_by": "root_sum_of_squares", "row_k": {"shared": 3}},
        {"aggregation": "mean"},
    ],
    ids=["one threshold on the score", "thresholds for each feature", "k per row", "relu of a mean"],
)
def test_normalisation_is_folded_into_the_weights(tmp_path, options):
    crosscoder = random_crosscoder(normalisation=UNEVEN, **options)

    crosscode.write(crosscoder, tmp_path)

    assert_same_function(crosscode.read(tmp_path), crosscoder)


def test_what_is_written_follows_their_formula(tmp_path):
    crosscoder = random_crosscoder(normalisation=UNEVEN, threshold=1.3, rank_by="largest_norm")

    crosscode.write(crosscoder, tmp_path, hookpoints=2)

    entries = torch.load(tmp_path / "model.pt", weights_only=True)
    assert entries["_W_enc_XiDiL"].shape == (1, 2, WIDTH, FEATURES)
    assert_follows_formula(crosscoder, entries, "jumprelu")


@pytest.mark.parametrize(
    ("crosscoder", "options", "message"),
    [
        (random_crosscoder(widths={"left": 4, "right": 5}), {}, "left 4, right 5"),
        (random_crosscoder(OWN_FIRST), {}, "no exclusive features"),
        (random_crosscoder(), {"hookpoints": 3}, "no whole number of models with 3 hookpoints"),
        (random_crosscoder(differences={"left": ("after", "before")}), {}, "'left' is 'after' minus 'before'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, crosscoder, options, message):
    with pytest.raises(CrosscoderError, match=message):
        crosscode.write(crosscoder, tmp_path / "new", **options)

    assert not (tmp_path / "new").exists()
