"""Latent scaling against its definition by least squares over all rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.analysis.claims.latent_scaling import LatentScaling, ScalingFactors
from trainer.analysis.claims.spaces import direction_agreement, shared_spaces
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import RecipeError
from trainer.recipe.measuring import AnalysisRecipe

WIDTHS = {"base": 6, "tuned": 6, "other": 9}
BOTH = ("base", "tuned")
GROUPS = (
    Group("shared", 6, 0, ("base", "tuned", "other"), ("base", "tuned", "other")),
    Group("base", 2, 6, ("base",), ("base",)),
    Group("tuned", 3, 8, ("tuned",), ("tuned",)),
    Group("other", 1, 11, ("other",), ("other",)),
)
ROWS = 120


def crosscoder_of(*, rotated: bool = False) -> Crosscoder:
    """A crosscoder whose shared features have similar directions in `base` and `tuned`, unless `rotated`."""
    generator = torch.Generator().manual_seed(3)
    weights = initial_weights(WIDTHS, GROUPS, decoder_norm=1.0, generator=generator)
    if not rotated:
        noise = 0.1 * torch.randn(6, 6, generator=generator)
        weights["decoder.tuned.shared"] = 0.8 * weights["decoder.base.shared"] + noise
    weights["decoder_bias.base"] += 0.3
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in WIDTHS.items()}
    return Crosscoder(WIDTHS, GROUPS, weights, normaliser, {group.name: torch.tensor(0.4) for group in GROUPS})


def measured(crosscoder: Crosscoder, *, block: int = 50) -> tuple[ScalingFactors, dict[str, np.ndarray], np.ndarray]:
    """Factors accumulated block by block, the rows, and dense codes [rows, features]."""
    generator = torch.Generator().manual_seed(4)
    rows = {name: torch.randn(ROWS, width, generator=generator) for name, width in WIDTHS.items()}
    ours, dense = LatentScaling(crosscoder, (BOTH,)), []
    for first in range(0, ROWS, block):
        some = {name: x[first : first + block] for name, x in rows.items()}
        codes = crosscoder.encode(some, compute=torch.float32)
        ours.add(some, codes)
        dense.append(torch.zeros(codes.rows, 12).index_put_((codes.row, codes.feature), codes.value))
    return ours.finish(), {name: x.double().numpy() for name, x in rows.items()}, torch.cat(dense).double().numpy()


def slow_beta(target: np.ndarray, activation: np.ndarray, direction: np.ndarray) -> float:
    """Least-squares factor of activation times direction in a target [rows, width], over all its entries."""
    predictor = np.outer(activation, direction).ravel()
    return float(np.linalg.lstsq(predictor[:, None], target.ravel(), rcond=None)[0][0])


def test_betas_and_nus_equal_the_explicit_definition():
    crosscoder = crosscoder_of()
    found, rows, dense = measured(crosscoder)
    decoder = {name: crosscoder.decoder(name).double().numpy() for name in WIDTHS}
    norms = np.stack([np.linalg.norm(decoder[name], axis=1) for name in WIDTHS], axis=1)
    compared = 0
    for feature in range(11):
        reference = list(WIDTHS)[norms[feature].argmax()]
        if not dense[:, feature].any() or reference not in BOTH:
            continue
        direction, beta = decoder[reference][feature], {}
        for name in BOTH:
            reconstruction = dense @ decoder[name] + crosscoder.weights[f"decoder_bias.{name}"].double().numpy()
            without = rows[name] - (reconstruction - np.outer(dense[:, feature], decoder[name][feature]))
            beta[name] = [slow_beta(target, dense[:, feature], direction) for target in (reconstruction, without)]
        for number, name in enumerate(BOTH):
            ours = found.beta_reconstruction[feature, number], found.beta_error[feature, number]
            assert ours == pytest.approx(beta[name], abs=1e-5)
            for nu, target in ((found.nu_reconstruction, 0), (found.nu_error, 1)):
                if beta[reference][target] > 0:
                    expected = beta[name][target] / beta[reference][target]
                    assert nu[feature, number] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        compared += 1
    assert compared >= 8


def test_the_reference_has_a_nu_of_one_and_other_spaces_none():
    found, _, _ = measured(crosscoder_of())
    own = found.beta_error[6:8, 0]
    assert (own > 0).any() and (own < 0).any()

    # These rows are noise: one feature's own beta is negative, so its ratios are undefined.
    assert np.array_equal(found.nu_error[6:8, 0], np.where(own > 0, 1, np.nan), equal_nan=True)
    assert np.isnan(found.nu_error[:, 2]).all()
    assert np.isnan(found.nu_reconstruction[11]).all()


def test_a_concept_that_the_dictionary_missed_in_one_source_is_found_in_its_error():
    """Complete shrinkage: a feature of `tuned` alone whose concept is in `base` too."""
    crosscoder = crosscoder_of()
    direction = crosscoder.weights["decoder.tuned.tuned"][0]
    generator = torch.Generator().manual_seed(5)
    amplitude = torch.rand(ROWS, 1, generator=generator) + 1
    rows = {name: 0.01 * torch.randn(ROWS, width, generator=generator) for name, width in WIDTHS.items()}
    rows["tuned"] += amplitude * direction
    rows["base"] += 0.5 * amplitude * direction
    for name in ("shared", "base"):
        crosscoder.threshold[name] = torch.tensor(100.0)
    crosscoder.weights["decoder_bias.base"].zero_()

    scaling = LatentScaling(crosscoder, (BOTH,))
    scaling.add(rows, crosscoder.encode(rows, compute=torch.float32))

    assert scaling.finish().nu_error[8, 0] == pytest.approx(0.5, abs=0.05)


def test_nothing_is_computed_where_no_sources_share_a_space():
    crosscoder = crosscoder_of()
    scaling = LatentScaling(crosscoder, ())
    rows = {name: torch.randn(4, width) for name, width in WIDTHS.items()}
    scaling.add(rows, crosscoder.encode(rows))

    assert np.isnan(scaling.finish().beta_error).all()


def test_sources_with_similar_directions_share_a_space():
    recipe = AnalysisRecipe()

    assert shared_spaces(crosscoder_of(), recipe) == (BOTH,)
    assert shared_spaces(crosscoder_of(rotated=True), recipe) == ()
    assert direction_agreement(crosscoder_of(), "base", "other") == 0


def test_tied_directions_are_no_evidence_of_a_common_space():
    tied = replace(GROUPS[0], writes=BOTH, tied=True)
    crosscoder = replace(crosscoder_of(), groups=(tied, *GROUPS[1:]))
    crosscoder.weights["decoder.tuned.shared"] = crosscoder.weights["decoder.base.shared"]

    assert shared_spaces(crosscoder, AnalysisRecipe()) == ()


def test_the_recipe_can_set_which_sources_share_a_space():
    crosscoder = crosscoder_of(rotated=True)

    assert shared_spaces(crosscoder, AnalysisRecipe(same_space=(BOTH,))) == (BOTH,)
    assert shared_spaces(crosscoder_of(), AnalysisRecipe(same_space=())) == ()
    with pytest.raises(RecipeError, match=r"'bass' is no reconstructed source. There are base, tuned, other"):
        shared_spaces(crosscoder, AnalysisRecipe(same_space=(("bass", "tuned"),)))
    with pytest.raises(RecipeError, match=r"base \(width 6\), other \(width 9\) cannot share a space"):
        shared_spaces(crosscoder, AnalysisRecipe(same_space=(("base", "other"),)))
