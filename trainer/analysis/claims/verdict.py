"""Defines the rule that turns evidence into verdicts on claims of exclusivity.

The claim is that only a feature's owner has it. It is

- *refuted* if a feature of another owner fires on the same rows (a twin), if the other sources' activations predict the
  feature nearly as well as the owner's do, or as well as they predict decoys, which both sides have;
- *supported* if the other sources' activations predict it at most half as well as the owner's, if that is so rare among
  decoys that the q-value is small, and if there is no reason for doubt: too few firings or documents, a density too
  high for one meaning, firings mostly on chat templates or first rows, a readout too poor to compare, latent scaling
  that finds the direction in the other source, or other runs of the comparison without the feature;
- *undecided* otherwise. A norm ratio or membership of a dedicated group makes a claim and does not support it.

A claim also has a *kind*: `absent` if the other sources predict next to nothing of the feature, `weaker` if they
predict a part, `analogue` if they have a twin. Axis F: features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.contrast import ReadoutContrast
from trainer.recipe.measuring import VerdictRecipe

SUPPORTS, DOUBTS, REFUTES, SILENT = "supports", "doubts", "refutes", "silent"
"""Outcomes of a test. A doubt prevents `supported`; a silent test has no effect."""
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
REQUIRED = ("readout_contrast", "q_value")
"""Tests that must support a claim for the verdict `supported`."""


@dataclass(frozen=True)
class FeatureStats:
    """Evidence on every feature [F]; NaN where unknown."""

    contrast: ReadoutContrast
    p_value: np.ndarray
    """Share of its owner's decoys that are at least as strong; see `q_values.p_values`."""
    q_value: np.ndarray
    decoys: np.ndarray
    """Number of decoys behind p- and q-value, int64 [F]."""
    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    template_share: np.ndarray
    first_token_share: np.ndarray
    twin: np.ndarray
    """Largest correlation with a feature of another owner."""
    nu_error: np.ndarray
    """Largest over the sources that lack the feature by the claim; NaN across spaces."""
    nu_reconstruction: np.ndarray
    """As `nu_error`, for the reconstruction."""
    found_again: np.ndarray
    """Share of the other runs of the comparison that also have the feature."""
    other_runs: np.ndarray
    """Number of other runs, int64 [F]."""

    def select(self, features: np.ndarray) -> "FeatureStats":
        """Evidence on some features, by their indices."""
        contrast = ReadoutContrast(self.contrast.own[features], self.contrast.other[features], self.contrast.slack)
        rest = {field.name: getattr(self, field.name)[features] for field in fields(self) if field.name != "contrast"}
        return FeatureStats(contrast, **rest)


@dataclass(frozen=True)
class ClaimTest:
    """One test, applied to every claim. Axis C: claims."""

    name: str
    value: np.ndarray
    """Measured value [C]; NaN where the test was not made."""
    threshold: np.ndarray
    """What the value is compared with [C]."""
    n: np.ndarray
    """Sample size behind the value: firings, decoys or other runs, int64 [C]."""
    says: np.ndarray
    """Outcome: SUPPORTS, DOUBTS, REFUTES or SILENT [C]."""


@dataclass(frozen=True)
class Judgement:
    """Verdicts on all features [F], and the tests of all claims [C]."""

    verdict: list[str]
    """Empty for features without a claim [F]."""
    kind: list[str | None]
    """None for features without a claim, and where no kind applies [F]."""
    claims: np.ndarray
    """Features with a claim, int64 [C]."""
    tests: tuple[ClaimTest, ...]

    def columns(self) -> dict[str, np.ndarray | pa.Array]:
        """Columns of the table `evidence`, by feature and test, without tests that were not made."""
        tests = np.array([test.name for test in self.tests])
        value, threshold, n, says = (
            np.stack([getattr(test, name) for test in self.tests], axis=1)
            for name in ("value", "threshold", "n", "says")
        )
        claim, test = np.nonzero(~np.isnan(value))
        return {
            "feature": self.claims[claim],
            "test": pa.array(tests[test]),
            "value": value[claim, test],
            "threshold": threshold[claim, test],
            "n": n[claim, test],
            "says": pa.array(says[claim, test].tolist(), pa.string()),
        }


def judge(claims: np.ndarray, stats: FeatureStats, recipe: VerdictRecipe) -> Judgement:
    """Verdicts on all features; `claims`, bool [F], marks those claimed to be absent from some source."""
    index = np.flatnonzero(claims)
    selected = stats.select(index)
    tests = tuple(_tests(selected, recipe))
    outcome = {test.name: test.says for test in tests}
    outcomes = np.stack([test.says for test in tests], axis=1)
    refuted = (outcomes == REFUTES).any(axis=1)
    supported = ~refuted & ~(outcomes == DOUBTS).any(axis=1)
    for name in REQUIRED:
        supported &= outcome[name] == SUPPORTS
    words = np.select([refuted, supported], [REFUTED, SUPPORTED], UNDECIDED)
    kinds = np.select(
        [
            outcome["twin"] == REFUTES,
            refuted | np.isnan(selected.contrast.ratio),
            selected.contrast.ratio <= recipe.absent_below,
        ],
        ["analogue", "", "absent"],
        "weaker",
    )
    verdict, kind = np.full(len(claims), "", object), np.full(len(claims), None, object)
    verdict[index], kind[index] = words, [one or None for one in kinds]
    return Judgement(verdict.tolist(), kind.tolist(), index, tests)


def ratio_limit(stats: FeatureStats, recipe: VerdictRecipe) -> np.ndarray:
    """Largest readout ratio at which each claim can be supported [F].

    Sources of one space carry nearly the same information, even if one of them does not use it. There latent scaling
    tells whether the other source has the direction, and the readout need only differ from that of decoys.
    """
    scaled = ~np.isnan(stats.nu_error) & ~np.isnan(stats.nu_reconstruction)
    return np.where(scaled, recipe.readout_contrast_same_space, recipe.readout_contrast)


def _tests(stats: FeatureStats, recipe: VerdictRecipe) -> Iterator[ClaimTest]:
    """All tests of the rule, in order."""
    ratio, firings = stats.contrast.ratio, stats.firings.astype(np.int64)

    def test(name: str, value: np.ndarray, threshold: float | np.ndarray, says: np.ndarray, n: np.ndarray) -> ClaimTest:
        return ClaimTest(name, value.astype(float), np.broadcast_to(threshold, value.shape), n, says)

    def at_least(name: str, value: np.ndarray, least: float) -> ClaimTest:
        return test(name, value, least, np.where(value < least, DOUBTS, SILENT), firings)

    def at_most(name: str, value: np.ndarray, most: float, beyond: str = DOUBTS, within: str = SILENT) -> ClaimTest:
        return test(name, value, most, _outcome(np.isnan(value), value <= most, within, beyond), firings)

    limit = ratio_limit(stats, recipe)
    enough = stats.contrast.own >= recipe.owner_readout
    equal = enough & (ratio >= np.maximum(limit, recipe.equal_readout))
    readout_outcome = np.select([np.isnan(ratio), equal, ratio <= limit], [SILENT, REFUTES, SUPPORTS], DOUBTS)
    yield test("readout_contrast", ratio, limit, readout_outcome, firings)
    resembles_decoys = (stats.p_value >= recipe.refuted_from) & (ratio > limit)
    decoy_outcome = np.where(resembles_decoys, REFUTES, SILENT)
    yield test("like_decoys", stats.p_value, recipe.refuted_from, decoy_outcome, stats.decoys)
    small = stats.q_value <= recipe.q_value
    yield test("q_value", stats.q_value, recipe.q_value, np.where(small, SUPPORTS, SILENT), stats.decoys)
    yield at_most("twin", stats.twin, recipe.twin, REFUTES)
    yield at_most("nu_error", stats.nu_error, recipe.nu_error, DOUBTS, SUPPORTS)
    yield at_most("nu_reconstruction", stats.nu_reconstruction, recipe.nu_reconstruction, DOUBTS, SUPPORTS)
    yield at_least("owner_readout", stats.contrast.own, recipe.owner_readout)
    yield at_least("firings", stats.firings, recipe.firings)
    yield at_least("documents", stats.documents, recipe.documents)
    yield at_most("density", stats.density, recipe.density)
    yield at_most("template_share", stats.template_share, recipe.template_share)
    yield at_most("first_token_share", stats.first_token_share, recipe.first_token_share)
    stability_outcome = np.where(stats.found_again < recipe.found_again, DOUBTS, SILENT)
    yield test("found_again", stats.found_again, recipe.found_again, stability_outcome, stats.other_runs)


def _outcome(unknown: np.ndarray, within: np.ndarray, if_within: str, beyond: str) -> np.ndarray:
    return np.select([unknown, within], [SILENT, if_within], beyond)


def verdict_shares(verdicts: Sequence[str]) -> dict[str, float]:
    """Share of each verdict among the claims; empty without claims."""
    judged = [verdict for verdict in verdicts if verdict]
    return {word: judged.count(word) / len(judged) for word in (SUPPORTED, REFUTED, UNDECIDED)} if judged else {}
