"""Placebos mean nothing: hardly any is supported, however the sources' noise is shaped."""

import pytest
import torch

from tests.worlds.two_sources import as_sample, two_sources
from trainer.calibration.placebo import COUNT, KINDS, judge_placebos
from trainer.recipe.measuring import VerdictRecipe

DENSITIES = [0.002, 0.005, 0.01, 0.02, 0.04]


def shaped(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Variance that falls off steeply over directions, as that of models does."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, x in rows.items():
        width = x.shape[1]
        axes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        found[name] = x @ (axes * torch.logspace(0, -1.5, width)) @ axes.T
    return found


SEEDS = 3
"""Placebos of one world are looked at on the same rows, and rise and fall together: one world says little."""


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("world", [dict, shaped], ids=["flat", "steep"])
def test_at_most_one_placebo_in_twenty_is_supported_between_correlated_gaussian_sources(noise: float, world):
    found = []
    for seed in range(SEEDS):
        sample, moments = as_sample(world(two_sources(noise=noise, seed=seed)))
        found += list(judge_placebos(sample, ("left", "right"), moments, DENSITIES, VerdictRecipe()))

    every = [(name, kind) for name in ("left", "right") for kind in KINDS]
    assert [(one.source, one.kind) for one in found] == every * SEEDS
    assert all(one.claims == COUNT and one.judged > 0.9 * COUNT for one in found), "all fire often enough"
    assert sum(one.supported for one in found) <= 0.05 * COUNT * len(found)
    for source, kind in every:
        # Isotropic directions of steep noise are the worst: one in fifteen over twelve worlds, one in nine over these.
        assert sum(one.supported for one in found if (one.source, one.kind) == (source, kind)) <= 0.12 * COUNT * SEEDS


def test_placebos_are_the_same_every_time():
    sample, moments = as_sample(two_sources())
    one, other = (list(judge_placebos(sample, ("right",), moments, [0.01], VerdictRecipe())) for _ in range(2))

    assert one == other


def test_without_claims_there_are_no_densities_to_draw_from_and_no_placebos():
    sample, moments = as_sample(two_sources())

    assert list(judge_placebos(sample, ("left", "right"), moments, [], VerdictRecipe())) == []
