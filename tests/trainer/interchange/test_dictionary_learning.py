"""A dictionary_learning checkpoint reconstructs by its own formula when read and when written."""

import json
import math

import pytest
import torch

from tests.worlds.foreign_checkpoints import (
    BOTH,
    LEFT,
    OWN_FIRST,
    PLAIN,
    RIGHT,
    SHARED_FIRST,
    UNEVEN,
    assert_identical,
    assert_same_function,
    random_crosscoder,
    raw_rows,
)
from trainer.crosscoder.groups import Group
from trainer.errors import CrosscoderError
from trainer.interchange import dictionary_learning

SOURCES, WIDTH, FEATURES = 2, 4, 9
NORMS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4}


def checkpoint(*, seed=0, sources=SOURCES, normalised=True, threshold=1.2, norm=1, global_scale=None):
    """What a training of theirs saves, with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    deviation = 0.5 + torch.rand(sources, WIDTH, generator=generator)
    scale = 1 / (deviation.square().sum(1) + 1e-8).sqrt() if global_scale is None else torch.tensor(global_scale)
    nothing = torch.full((sources, WIDTH), math.nan)
    entries = {
        "encoder.weight": noise(sources, WIDTH, FEATURES),
        "encoder.bias": 0.2 * noise(FEATURES),
        "decoder.weight": noise(sources, FEATURES, WIDTH),
        "decoder.bias": noise(sources, WIDTH),
        "code_normalization_id": torch.tensor(norm),
        "target_rms": torch.tensor(1.0),
        "activation_mean": 2 * noise(sources, WIDTH) if normalised else nothing,
        "activation_std": deviation if normalised else nothing,
        "activation_global_scale": scale if normalised else torch.ones(sources),
    }
    if threshold is not None:
        entries |= {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    return entries


def save(folder, entries, **trainer):
    folder.mkdir(exist_ok=True)
    torch.save(entries, folder / "model_final.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def by_their_formula(entries, rows, *, per_neuron=False):
    """Reconstruction of raw rows [row][source][neuron], one number at a time in double precision."""
    e = {name: value.double().tolist() for name, value in entries.items() if isinstance(value, torch.Tensor)}
    sources, features = range(len(e["encoder.weight"])), range(len(e["encoder.bias"]))
    neurons = range(len(e["decoder.bias"][0]))
    normalised = not math.isnan(e["activation_mean"][0][0])

    def divisor(s, i):
        return e["activation_std"][s][i] + 1e-8 if per_neuron else 1 / e["activation_global_scale"][s]

    def multiplier(s, i):
        return divisor(s, i) if per_neuron else 1 / (e["activation_global_scale"][s] + 1e-8)

    result = []
    for row in rows:
        x = [list(row[s]) for s in sources]
        if normalised:
            x = [[(x[s][i] - e["activation_mean"][s][i]) / divisor(s, i) for i in neurons] for s in sources]
        codes = []
        for f in features:
            total = e["encoder.bias"][f]
            total += sum(x[s][i] * e["encoder.weight"][s][i][f] for s in sources for i in neurons)
            norms = [math.sqrt(sum(v * v for v in e["decoder.weight"][s][f])) for s in sources]
            whole = math.sqrt(sum(v * v for v in norms))
            score = {1: sum(norms), 2: whole, 3: 1.0 * whole + 0.1 * sum(norms), 4: 1.0}[e["code_normalization_id"]]
            code = max(total, 0.0)
            codes.append(code if code * score > e.get("threshold", 0.0) else 0.0)
        y = [
            [e["decoder.bias"][s][i] + sum(codes[f] * e["decoder.weight"][s][f][i] for f in features) for i in neurons]
            for s in sources
        ]
        if normalised:
            y = [[y[s][i] * multiplier(s, i) + e["activation_mean"][s][i] for i in neurons] for s in sources]
        result.append(y)
    return torch.tensor(result)


def assert_follows_formula(crosscoder, entries, **options):
    """Our reconstruction of raw rows is that of the formula."""
    rows = raw_rows(crosscoder)
    stacked = torch.stack([rows[source] for source in crosscoder.sources], dim=1)
    expected = by_their_formula(entries, stacked.double().tolist(), **options)
    codes = crosscoder.encode(rows, compute=torch.float32)
    found = crosscoder.decode(codes)
    for index, source in enumerate(crosscoder.sources):
        size = float(expected[:, index].abs().max())
        torch.testing.assert_close(found[source], expected[:, index], rtol=1e-5, atol=1e-5 * size)
    assert 0 < len(codes.row) < codes.rows * crosscoder.features


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_topk_checkpoint_reconstructs_by_its_own_formula(tmp_path, norm):
    entries = checkpoint(norm=NORMS[norm], threshold=1.7)

    crosscoder = dictionary_learning.read(save(tmp_path, entries), sources=("base", "chat"))

    assert crosscoder.sources == ("base", "chat")
    assert_follows_formula(crosscoder, entries)


def test_an_l1_checkpoint_of_three_sources_lets_every_positive_activation_through(tmp_path):
    entries = checkpoint(sources=3, normalised=False, threshold=None)

    crosscoder = dictionary_learning.read(save(tmp_path, entries))

    assert crosscoder.sources == ("source-0", "source-1", "source-2")
    assert crosscoder.rank_by == "sum_of_norms"
    assert_follows_formula(crosscoder, entries)


def test_a_threshold_that_was_never_set_lets_every_positive_activation_through(tmp_path):
    crosscoder = dictionary_learning.read(save(tmp_path, checkpoint(threshold=-1.0)))

    assert crosscoder.threshold["shared"] == 0


def test_the_epsilon_added_to_a_small_scale_is_accounted_for(tmp_path):
    entries = checkpoint(global_scale=[1e-5, 3e-4], threshold=1.7)

    crosscoder = dictionary_learning.read(save(tmp_path, entries))

    assert_follows_formula(crosscoder, entries)


def test_scales_per_neuron_are_folded_into_the_weights(tmp_path):
    entries = checkpoint(threshold=1.7)

    crosscoder = dictionary_learning.read(save(tmp_path, entries, keep_relative_variance=False))

    assert_follows_formula(crosscoder, entries, per_neuron=True)


def test_an_old_checkpoint_without_statistics_is_ranked_by_the_sum_of_norms_unless_told(tmp_path):
    new = ("code_normalization_id", "target_rms", "activation_mean", "activation_std", "activation_global_scale")
    entries = {name: value for name, value in checkpoint().items() if name not in new}
    save(tmp_path, entries)

    assert dictionary_learning.read(tmp_path).rank_by == "sum_of_norms"
    assert dictionary_learning.read(tmp_path, code_normalization="sae").rank_by == "root_sum_of_squares"
    with pytest.raises(CrosscoderError, match="Known are CROSSCODER"):
        dictionary_learning.read(tmp_path, code_normalization="crosscoders")


def test_the_prefix_of_torch_compile_is_taken_off(tmp_path):
    entries = checkpoint()
    save(tmp_path / "compiled", {f"_orig_mod.{name}": value for name, value in entries.items()})
    save(tmp_path / "plain", entries)

    found, expected = (dictionary_learning.read(tmp_path / name) for name in ("compiled", "plain"))

    assert_identical(found, expected)


def test_safetensors_from_the_hub_read_like_the_state_dict(tmp_path):
    from safetensors.torch import save_file

    entries = checkpoint()
    save(tmp_path / "trained", entries)
    (tmp_path / "hub").mkdir()
    save_file(entries, tmp_path / "hub" / "model.safetensors")

    found, expected = (dictionary_learning.read(tmp_path / name) for name in ("hub", "trained"))

    assert_identical(found, expected)


def test_of_several_checkpoints_the_one_of_the_latest_step_is_read(tmp_path):
    for step in (900, 10000):
        torch.save(checkpoint(threshold=float(step)), tmp_path / f"checkpoint_{step}.pt")

    assert dictionary_learning.read(tmp_path).threshold["shared"] == 10000
    assert dictionary_learning.read(tmp_path / "checkpoint_900.pt").threshold["shared"] == 900


def partitioned_checkpoint():
    """Features 0 and 1 are of the first source, 2 of the second, the rest shared."""
    entries = checkpoint(threshold=1.7)
    for name, axis in (("encoder.weight", 2), ("decoder.weight", 1)):
        entries[name][1].narrow(axis - 1, 0, 2).zero_()
        entries[name][0].narrow(axis - 1, 2, 1).zero_()
    partition = {"dict_size": FEATURES, "model_a_exclusive_pct": 0.25, "model_b_exclusive_pct": 0.12}
    return entries | {"_partition_config": partition}


def test_a_dfc_checkpoint_keeps_its_partition_and_has_no_forbidden_parameters(tmp_path):
    entries = partitioned_checkpoint()

    crosscoder = dictionary_learning.read(save(tmp_path, entries), sources=BOTH)

    assert [(g.name, g.first, g.stop, g.reads) for g in crosscoder.groups] == [
        ("left", 0, 2, LEFT),
        ("right", 2, 3, RIGHT),
        ("shared", 3, 9, BOTH),
    ]
    assert "encoder.right.left" not in crosscoder.weights and "decoder.left.right" not in crosscoder.weights
    assert_follows_formula(crosscoder, entries)


def test_forbidden_weights_that_are_not_zero_are_refused_with_their_size(tmp_path):
    entries = partitioned_checkpoint()
    entries["decoder.weight"][1, 0, 2] = 0.25

    with pytest.raises(CrosscoderError, match=r"decoder of 'source-1' for the features of 'source-0'.* 0.25"):
        dictionary_learning.read(save(tmp_path, entries))


def test_a_code_for_each_source_is_refused(tmp_path):
    entries = checkpoint(norm=5) | {"threshold": torch.tensor([1.0, 2.0])}

    with pytest.raises(CrosscoderError, match="DECOUPLED"):
        dictionary_learning.read(save(tmp_path, entries))


@pytest.mark.parametrize("groups", [None, OWN_FIRST])
@pytest.mark.parametrize("normalisation", [PLAIN, UNEVEN])
@pytest.mark.parametrize("rank_by", ["sum_of_norms", "root_sum_of_squares", "activation"])
@pytest.mark.parametrize("threshold", [0.0, 1.3])
def test_a_round_trip_is_exact_to_the_bit(tmp_path, groups, normalisation, rank_by, threshold):
    options = {"normalisation": normalisation, "rank_by": rank_by, "threshold": threshold}
    crosscoder = random_crosscoder(groups, **options) if groups else random_crosscoder(**options)

    dictionary_learning.write(crosscoder, tmp_path)

    assert_identical(dictionary_learning.read(tmp_path), crosscoder)


def test_what_is_written_follows_their_formula(tmp_path):
    crosscoder = random_crosscoder(OWN_FIRST, normalisation=UNEVEN, threshold=1.3)

    dictionary_learning.write(crosscoder, tmp_path, k=7)

    entries = torch.load(tmp_path / "model_final.pt", weights_only=True)
    assert entries["k"] == 7
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == (
        "DedicatedFeatureBatchTopKCrossCoder"
    )
    partition = entries["_partition_config"]
    assert [int(10 * partition[f"model_{m}_exclusive_pct"]) for m in "ab"] == [2, 3]
    assert_follows_formula(crosscoder, entries)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_by": "largest_norm", "threshold": 1.1},
        {"threshold": {"shared": 1.0, "left": 0.6, "right": 0.3}},
        {"aggregation": "mean", "threshold": 0.7},
        {"normalisation": {"left": (0.5, 2e-4), "right": (0.0, 5e-3)}, "threshold": 1.3},
    ],
    ids=["largest norm", "a threshold for each group", "a mean over reads", "minute scales"],
)
def test_what_the_format_cannot_express_is_folded_into_the_weights(tmp_path, options):
    crosscoder = random_crosscoder(SHARED_FIRST, **{"normalisation": UNEVEN, **options})

    dictionary_learning.write(crosscoder, tmp_path)

    # Exclusive features come first in the file.
    order = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    assert_same_function(dictionary_learning.read(tmp_path), crosscoder, order)


WIDE = {"left": 4, "right": 5}
WRITES_ONE = (Group("shared", 9, 0, BOTH, RIGHT),)


@pytest.mark.parametrize(
    ("crosscoder", "message"),
    [
        (random_crosscoder(widths=WIDE), "left 4, right 5"),
        (random_crosscoder(WRITES_ONE), r"no place for group 'shared' \(reads left, right, writes right\)"),
        (random_crosscoder(row_k={"shared": 3}), "no fixed number of features per row"),
        (random_crosscoder(SHARED_FIRST, threshold={"shared": 1.0, "left": 0.0, "right": 1.0}), "some of them zero"),
        (random_crosscoder(differences={"left": ("after", "before")}), "'left' is 'after' minus 'before'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, crosscoder, message):
    with pytest.raises(CrosscoderError, match=message):
        dictionary_learning.write(crosscoder, tmp_path / "new")

    assert not (tmp_path / "new").exists()
