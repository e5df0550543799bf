"""A ckkissane checkpoint reconstructs by its own formula when read and when written."""

import json
import math

import pytest
import torch

from tests.worlds.foreign_checkpoints import (
    OWN_FIRST,
    PLAIN,
    UNEVEN,
    assert_identical,
    assert_same_function,
    random_crosscoder,
    raw_rows,
)
from trainer.errors import CrosscoderError
from trainer.interchange import ckkissane

WIDTH, FEATURES = 4, 9


def checkpoint(*, models=2, threshold=None, dtype=torch.float32):
    """What a training of theirs saves, with random weights."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (models, WIDTH, FEATURES), "W_dec": (FEATURES, models, WIDTH)}
    shapes |= {"b_enc": (FEATURES,), "b_dec": (models, WIDTH)}
    entries = {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    if threshold is not None:
        entries |= {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    return entries


def save(folder, entries, name="cc_weights.pt", settings="cfg.json", **extra):
    folder.mkdir(exist_ok=True)
    torch.save(entries, folder / name)
    (folder / settings).write_text(json.dumps({"d_in": WIDTH, "dict_size": FEATURES, "enc_dtype": "fp32", **extra}))
    return folder


def by_their_formula(entries, rows, factors):
    """Reconstruction of raw rows [row][model][neuron]; activations are multiplied with the factors first."""
    e = {name: value.double().tolist() for name, value in entries.items()}
    models, neurons, features = range(len(factors)), range(WIDTH), range(FEATURES)
    result = []
    for row in rows:
        codes = []
        for f in features:
            total = sum(row[m][i] * factors[m] * e["W_enc"][m][i][f] for m in models for i in neurons) + e["b_enc"][f]
            norms = sum(math.sqrt(sum(v * v for v in e["W_dec"][f][m])) for m in models)
            code = max(total, 0.0)
            codes.append(code if "threshold" not in e or code * norms > e["threshold"] else 0.0)
        result.append(
            [
                [
                    (sum(codes[f] * e["W_dec"][f][m][i] for f in features) + e["b_dec"][m][i]) / factors[m]
                    for i in neurons
                ]
                for m in models
            ]
        )
    return torch.tensor(result)


def assert_follows_formula(crosscoder, entries, factors):
    rows = raw_rows(crosscoder)
    stacked = torch.stack([rows[source] for source in crosscoder.sources], dim=1)
    expected = by_their_formula(entries, stacked.double().tolist(), factors)
    codes = crosscoder.encode(rows, compute=torch.float32)
    for index, (source, found) in enumerate(crosscoder.decode(codes).items()):
        assert source == crosscoder.sources[index]
        torch.testing.assert_close(found, expected[:, index], rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert 0 < len(codes.row) < codes.rows * crosscoder.features


def test_an_l1_checkpoint_reconstructs_by_its_own_formula(tmp_path):
    entries = checkpoint()

    crosscoder = ckkissane.read(save(tmp_path, entries), sources=("base", "chat"))

    assert crosscoder.sources == ("base", "chat")
    assert_follows_formula(crosscoder, entries, [1.0, 1.0])


def test_a_batch_topk_checkpoint_of_three_models_takes_the_factors_in_its_settings(tmp_path):
    entries = checkpoint(models=3, threshold=4.0)

    crosscoder = ckkissane.read(save(tmp_path, entries, "2.pt", "2_cfg.json", estimated_act_norm_list=[0.5, 2.0, 0.25]))

    assert_follows_formula(crosscoder, entries, [0.5, 2.0, 0.25])


def test_factors_that_are_given_take_the_place_of_those_in_the_settings(tmp_path):
    entries = checkpoint()

    crosscoder = ckkissane.read(save(tmp_path, entries, estimated_act_norm_list=[9.0, 9.0]), scales=(0.5, 0.125))

    assert_follows_formula(crosscoder, entries, [0.5, 0.125])


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.0), (1.0, 2.0, 3.0)])
def test_as_many_factors_as_sources_and_all_above_zero_are_needed(tmp_path, scales):
    save(tmp_path, checkpoint())

    with pytest.raises(CrosscoderError, match="Give one above 0 for each"):
        ckkissane.read(tmp_path, scales=scales)


def test_half_precision_weights_are_read_exactly(tmp_path):
    entries = checkpoint(dtype=torch.bfloat16)

    crosscoder = ckkissane.read(save(tmp_path, entries))

    assert torch.equal(crosscoder.weights["decoder.source-1.shared"].bfloat16(), entries["W_dec"][:, 1])


def test_of_several_numbered_files_the_last_is_read(tmp_path):
    for number in (2, 10):
        save(tmp_path, checkpoint(threshold=float(number)), f"{number}.pt", f"{number}_cfg.json")

    assert ckkissane.read(tmp_path).threshold["shared"] == 10


def test_settings_of_another_checkpoint_are_noticed(tmp_path):
    save(tmp_path, checkpoint(), dict_size=16384)

    with pytest.raises(CrosscoderError, match=r"'W_enc' has shape \[2, 4, 9\], but its settings say dict_size 16384"):
        ckkissane.read(tmp_path)


def test_three_codes_per_feature_are_named_with_the_shape_expected(tmp_path):
    save(tmp_path, checkpoint() | {"W_enc": torch.zeros(2, WIDTH, 3, FEATURES)})

    with pytest.raises(
        CrosscoderError, match=r"'W_enc' has shape \[2, 4, 3, 9\], expected \[sources, width, features\]"
    ):
        ckkissane.read(tmp_path)


@pytest.mark.parametrize("normalisation", [PLAIN, {"left": (0.0, 0.25), "right": (0.0, 3.0)}])
@pytest.mark.parametrize("threshold", [0.0, 1.3])
def test_a_round_trip_is_exact_to_the_bit(tmp_path, normalisation, threshold):
    crosscoder = random_crosscoder(normalisation=normalisation, threshold=threshold)

    ckkissane.write(crosscoder, tmp_path)

    assert_identical(ckkissane.read(tmp_path), crosscoder)


def test_means_are_folded_into_the_biases_and_thresholds_stay(tmp_path):
    crosscoder = random_crosscoder(normalisation=UNEVEN, threshold=1.3, aggregation="mean")

    ckkissane.write(crosscoder, tmp_path, k=5)

    assert torch.load(tmp_path / "cc_weights.pt", weights_only=True)["k"] == 5
    assert_same_function(ckkissane.read(tmp_path), crosscoder)


@pytest.mark.parametrize(
    ("crosscoder", "message"),
    [
        (random_crosscoder(widths={"left": 4, "right": 5}), "left 4, right 5"),
        (random_crosscoder(OWN_FIRST), "no exclusive features, and this crosscoder has 2 and 3"),
        (random_crosscoder(threshold=1.0, rank_by="largest_norm"), "ranks by largest_norm"),
        (random_crosscoder(threshold={"shared": torch.arange(1.0, 10.0)}), "one threshold for all features"),
        (random_crosscoder(row_k={"shared": 3}), "no fixed number of features per row"),
        (random_crosscoder(differences={"left": ("after", "before")}), "'left' is 'after' minus 'before'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, crosscoder, message):
    with pytest.raises(CrosscoderError, match=message):
        ckkissane.write(crosscoder, tmp_path / "new")

    assert not (tmp_path / "new").exists()
