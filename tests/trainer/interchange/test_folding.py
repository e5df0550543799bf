"""Folding changes the weights and not the function."""

import pytest
import torch

from tests.worlds.foreign_checkpoints import SHARED_FIRST, UNEVEN, assert_same_function, random_crosscoder
from trainer.interchange.folding import with_scores_as_activations, without_mean, without_normalisation

EVEN = {"left": (1.5, 0.25), "right": (-0.75, 0.25)}


@pytest.mark.parametrize("normalisation", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("rank_by", ["largest_norm", "sum_of_norms", "root_sum_of_squares", "activation"])
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_a_crosscoder_for_raw_activations_does_the_same(normalisation, rank_by, threshold):
    crosscoder = random_crosscoder(SHARED_FIRST, normalisation=normalisation, rank_by=rank_by, threshold=threshold)

    folded = without_normalisation(crosscoder)

    assert all(n.scale == 1 and not bool(n.mean.any()) for n in folded.normaliser.values())
    assert_same_function(folded, crosscoder)


def test_the_ranking_is_kept_when_all_sources_have_one_scale():
    crosscoder = random_crosscoder(normalisation=EVEN, threshold=1.0)

    folded = without_normalisation(crosscoder)

    # Decoders are four times as long for raw activations, and so is the score.
    assert folded.rank_by == "sum_of_norms"
    assert folded.threshold["shared"] == 4.0


def test_a_mean_is_folded_without_touching_norms_or_scales():
    crosscoder = random_crosscoder(SHARED_FIRST, normalisation=UNEVEN, threshold=0.9, aggregation="mean")

    folded = without_mean(crosscoder)

    assert folded.threshold == crosscoder.threshold
    assert torch.equal(folded.decoder("left"), crosscoder.decoder("left"))
    assert_same_function(folded, crosscoder)


def test_activations_become_the_scores_they_had():
    crosscoder = random_crosscoder(threshold=1.0, rank_by="largest_norm")
    generator = torch.Generator().manual_seed(2)
    rows = {source: torch.randn(6, width, generator=generator) for source, width in crosscoder.widths.items()}

    before = crosscoder.encode(rows, compute=torch.float32)
    after = with_scores_as_activations(crosscoder).encode(rows, compute=torch.float32)

    norms = torch.stack([crosscoder.decoder(source).norm(dim=1) for source in crosscoder.sources]).amax(dim=0)
    torch.testing.assert_close(after.value, before.value * norms[before.feature])
    assert float(after.value.min()) > 1.0


def test_a_feature_without_a_decoder_never_fires():
    crosscoder = random_crosscoder(threshold=0.5, normalisation=UNEVEN)
    for source in crosscoder.sources:
        crosscoder.weights[f"decoder.{source}.shared"][4] = 0

    folded = without_normalisation(crosscoder)

    assert_same_function(folded, crosscoder)
    assert all(bool(torch.isfinite(weight).all()) for weight in folded.weights.values())
