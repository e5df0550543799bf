"""Small random crosscoders with matching raw rows, for round trips through other tools' formats."""

import torch

from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser

LEFT, RIGHT, BOTH = ("left",), ("right",), ("left", "right")
STANDARD = (Group("shared", 9, 0, BOTH, BOTH),)
OWN_FIRST = (Group("left", 2, 0, LEFT, LEFT), Group("right", 3, 2, RIGHT, RIGHT), Group("shared", 5, 5, BOTH, BOTH))
"""In the order of the DFC tools."""
SHARED_FIRST = (Group("shared", 5, 0, BOTH, BOTH), Group("left", 2, 5, LEFT, LEFT), Group("right", 3, 7, RIGHT, RIGHT))
"""In our order."""
UNEVEN = {"left": (1.5, 0.25), "right": (-0.75, 3.0)}
"""Mean and scale per source."""
PLAIN = {"left": (0.0, 1.0), "right": (0.0, 1.0)}


def random_crosscoder(
    groups=STANDARD, *, widths=None, normalisation=None, threshold=0.0, rank_by="sum_of_norms", seed=0, **fields
) -> Crosscoder:
    """Random weights, with biases and with decoders of different lengths in each source."""
    widths = widths or {"left": 4, "right": 4}
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(widths, groups, decoder_norm=1.0, generator=generator)
    weights = {name: weight + 0.3 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    normaliser = {}
    for name, (mean, scale) in (normalisation or dict.fromkeys(widths, (0.0, 1.0))).items():
        noise = torch.randn(widths[name], generator=generator) if mean else torch.zeros(widths[name])
        normaliser[name] = Normaliser(mean + noise, scale)
    thresholds = threshold if isinstance(threshold, dict) else dict.fromkeys((g.name for g in groups), threshold)
    thresholds = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in thresholds.items()}
    return Crosscoder(widths, groups, weights, normaliser, thresholds, rank_by, **fields)


def raw_rows(crosscoder: Crosscoder, count: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    """Raw activations whose normalised ones are standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: normaliser.denormalise(torch.randn(count, crosscoder.widths[name], generator=generator))
        for name, normaliser in crosscoder.normaliser.items()
    }


def active(codes: Codes, order: torch.Tensor | None = None) -> set[tuple[int, int]]:
    """The (row, feature) pairs that fire; `order` gives the feature at every index."""
    feature = codes.feature if order is None else order[codes.feature]
    return set(zip(codes.row.tolist(), feature.tolist(), strict=True))


def assert_same_function(found: Crosscoder, expected: Crosscoder, order: torch.Tensor | None = None) -> None:
    """Both have the same firings and reconstructions; some but not all features fire."""
    rows = raw_rows(expected)
    ours, theirs = (crosscoder.encode(rows, compute=torch.float32) for crosscoder in (found, expected))
    assert 0 < len(theirs.row) < theirs.rows * expected.features
    assert active(ours, order) == active(theirs)
    for source, wanted in expected.decode(theirs).items():
        size = float(wanted.abs().max())
        torch.testing.assert_close(found.decode(ours)[source], wanted, rtol=1e-5, atol=1e-5 * size)


def assert_identical(found: Crosscoder, expected: Crosscoder) -> None:
    """Equal to the bit in everything that is saved."""
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())
    assert all(torch.equal(found.threshold[name], value) for name, value in expected.threshold.items())
    for source, normaliser in expected.normaliser.items():
        assert found.normaliser[source].scale == normaliser.scale
        assert torch.equal(found.normaliser[source].mean, normaliser.mean)
    assert (found.widths, found.groups, found.rank_by, found.aggregation, found.row_k) == (
        expected.widths,
        expected.groups,
        expected.rank_by,
        expected.aggregation,
        expected.row_k,
    )
