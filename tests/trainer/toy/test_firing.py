"""Frequencies, magnitudes and correlations of firings follow the generative model."""

import math

import pytest
import torch

from trainer.toy.firing import FiringModel, sample_bernoulli

ROWS = 40_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_concept_in_a_hundred_is_active_and_no_row_is_empty():
    active = FiringModel.random(512, seeded()).draw(ROWS, seeded(1))

    per_row = active.row.bincount(minlength=ROWS)
    # 512 / 100, and one for each of the few rows that would have had none.
    assert float(per_row.float().mean()) == pytest.approx(5.12 + math.exp(-5.12), abs=5 * math.sqrt(5.1 / ROWS))
    assert int(per_row.min()) == 1
    assert torch.equal(active.row, active.row.sort().values)


def test_concepts_fire_in_proportion_to_their_decay_over_a_factor_of_almost_eight():
    firing = FiringModel.random(200, seeded())
    expected = 2.0 * firing.decay / firing.decay.sum() * ROWS

    counts = torch.zeros(200)
    for seed in range(1, 5):
        counts += firing.draw(ROWS, seeded(seed)).concept.bincount(minlength=200)

    assert float(expected.max() / expected.min()) == pytest.approx(math.exp(2.048 * 199 / 200))
    # Rows with nothing active (13 %) get one concept more, in the same proportions.
    expected *= 4 * (1 + math.exp(-2.0) / 2.0)
    assert float(((counts - expected) / expected.sqrt()).abs().max()) < 6


def test_concepts_that_load_on_the_same_factor_fire_together():
    loadings = torch.zeros(10, 100)
    loadings[0, :2] = 2.0
    loadings[0, 2] = -2.0
    firing = FiringModel(loadings, torch.ones(100))

    active = firing.draw(200_000, seeded())
    table = torch.zeros(200_000, 100, dtype=torch.bool)
    table[active.row, active.concept] = True

    together = float((table[:, 0] & table[:, 1]).float().mean())
    apart = float((table[:, 0] & table[:, 2]).float().mean())
    alone = float((table[:, 3] & table[:, 4]).float().mean())
    assert together > 1.2 * alone > 1.2 * 1.2 * apart


def test_integrating_out_the_noise_gives_the_probabilities_of_sampling_it():
    loadings = torch.zeros(1, 100)
    loadings[0, :2], loadings[0, 2] = 1.0, -1.0
    firing = FiringModel(loadings, torch.linspace(0.2, 1.0, 100))

    quick = firing.probabilities(40_000, seeded())

    # The slow way: noise for every concept of every row, then decay, then the same sum on every row.
    logits = torch.randn(40_000, 1, generator=seeded(1)) @ loadings + torch.randn(40_000, 100, generator=seeded(2))
    slow = torch.sigmoid(logits) * firing.decay
    slow /= slow.sum(dim=1, keepdim=True)
    for one, other in ((0, 99), (0, 1), (0, 2), (50, 60)):
        found, expected = (float((p[:, one] * p[:, other]).mean()) for p in (quick, slow))
        assert found == pytest.approx(expected, rel=0.03), (one, other)
    assert float((quick.mean(dim=0) / slow.mean(dim=0) - 1).abs().max()) < 0.03


def test_magnitudes_are_uniform_between_zero_and_one():
    magnitude = FiringModel.random(512, seeded()).draw(ROWS, seeded(1)).magnitude

    assert float(magnitude.min()) >= 0 and float(magnitude.max()) < 1
    deciles = torch.histc(magnitude, 10, 0, 1) / len(magnitude)
    assert float((deciles - 0.1).abs().max()) < 0.005


def test_bernoulli_trials_are_independent_with_their_own_probabilities():
    probability = torch.tensor([[0.0, 0.3, 1.0], [0.2, 0.6, 0.01]]).repeat(ROWS, 1)

    flat = sample_bernoulli(probability, seeded())

    table = torch.zeros(2 * ROWS * 3)
    table[flat] = 1
    table = table.reshape(ROWS, 2, 3)
    assert torch.equal(flat, torch.unique(flat))
    deviation = (probability[:2] * (1 - probability[:2]) / ROWS).sqrt()
    assert bool(((table.mean(dim=0) - probability[:2]).abs() <= 5 * deviation + 1e-4).all())
    both = float((table[:, 1, 0] * table[:, 1, 1]).mean())
    assert both == pytest.approx(0.2 * 0.6, abs=5 * math.sqrt(0.12 / ROWS))
