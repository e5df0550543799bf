"""Defines the rule that turns evidence into verdicts on claims of exclusivity.

The claim is that only a feature's owner has it. Two questions decide: is it a feature, and whose is it? It is

- *refuted* if the other sources tell at least four fifths as well where it fires (the interval of the probe ratio lies
  above that), or more than half as well if a feature of another owner fires on the same rows (a twin);
- *supported* if it fires clearly more strongly than noise would make it (the interval of the excess lies above the
  limit), if the other sources tell at most half as well where it fires (the interval of the probe ratio lies below
  that, also at other layers), and if there is no reason for doubt: false claims that look as strong in noise of the
  same shape, too few firings or documents, a density too high for one meaning, firings mostly on chat templates or
  first rows, latent scaling that finds the direction in the other source, or other trainings without the feature;
- *undecided* otherwise. Absence of evidence never refutes, and a norm ratio or membership of a dedicated group makes a
  claim and does not support it.

A claim also has a *kind*: `absent` if the other sources tell next to nothing of the feature, `weaker` if they tell a
part, `analogue` if they have a twin, `noise` if it fires hardly more strongly than noise would make it. Axis F:
features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.evidence import Estimate
from trainer.recipe.measuring import VerdictRecipe

SUPPORTS, DOUBTS, REFUTES, SILENT = "supports", "doubts", "refutes", "silent"
"""Outcomes of a test. A doubt prevents `supported`; a silent test has no effect."""
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
UNTESTED = "untested"
"""Of a feature that one source owns by its norms, where claims are made of residual dictionaries' features only."""
NOISE_LIKE = 1.1
"""A feature whose excess is surely below this is like noise."""
REQUIRED = ("probe_ratio", "excess")
"""Tests that must support a claim for the verdict `supported`."""


@dataclass(frozen=True)
class FeatureStats:
    """Evidence on every feature [F]; NaN where unknown."""

    ratio: Estimate
    """R-precision of the other sources' best probe over that of the owner's."""
    own: np.ndarray
    """R-precision of the owner's best probe."""
    excess: Estimate
    """Energy over that which noise would give."""
    elsewhere: Estimate
    """The largest probe ratio at other layers of the other sources' models."""
    fdr: np.ndarray
    """Expected share of noise among the owner's claims at least as strong; see `null_rate`."""
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
    """Share of the other trainings that also have the feature."""
    other_runs: np.ndarray
    """Number of other trainings, int64 [F]."""

    def select(self, features: np.ndarray) -> "FeatureStats":
        """Evidence on some features, by their indices."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        selected: dict[str, Any] = {
            name: x.select(features) if isinstance(x, Estimate) else x[features] for name, x in found.items()
        }
        return FeatureStats(**selected)


@dataclass(frozen=True)
class ClaimTest:
    """One test, applied to every claim. Axis C: claims."""

    name: str
    value: np.ndarray
    """Measured value [C]; NaN where the test was not made."""
    threshold: np.ndarray
    """What the value is compared with [C]."""
    n: np.ndarray
    """Sample size behind the value: firings or other trainings, int64 [C]."""
    says: np.ndarray
    """Outcome: SUPPORTS, DOUBTS, REFUTES or SILENT [C]."""
    low: np.ndarray
    """Bounds of the value's 90 % interval [C]; NaN where it has none."""
    high: np.ndarray


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
        value, threshold, n, says, low, high = (
            np.stack([getattr(test, name) for test in self.tests], axis=1)
            for name in ("value", "threshold", "n", "says", "low", "high")
        )
        claim, test = np.nonzero(~np.isnan(value))
        return {
            "feature": self.claims[claim],
            "test": pa.array(tests[test]),
            "value": value[claim, test],
            "low": low[claim, test],
            "high": high[claim, test],
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
            refuted,
            selected.excess.high < min(NOISE_LIKE, recipe.excess),
            np.isnan(selected.ratio.value),
            np.fmax(selected.ratio.high, selected.elsewhere.high) <= recipe.absent_below,
        ],
        ["analogue", "", "noise", "", "absent"],
        "weaker",
    )
    verdict, kind = np.full(len(claims), "", object), np.full(len(claims), None, object)
    verdict[index], kind[index] = words, [one or None for one in kinds]
    return Judgement(verdict.tolist(), kind.tolist(), index, tests)


def ratio_limit(stats: FeatureStats, recipe: VerdictRecipe) -> np.ndarray:
    """Largest probe ratio at which each claim can be supported [F].

    Sources of one space carry nearly the same information, even if one of them does not use it. There latent scaling
    tells whether the other source has the direction, and the probes need only differ.
    """
    scaled = ~np.isnan(stats.nu_error) & ~np.isnan(stats.nu_reconstruction)
    return np.where(scaled, recipe.probe_ratio_same_space, recipe.probe_ratio)


def _tests(stats: FeatureStats, recipe: VerdictRecipe) -> Iterator[ClaimTest]:
    """All tests of the rule, in order."""
    firings, unknown = stats.firings.astype(np.int64), np.full(len(stats.firings), np.nan)

    def test(
        name: str,
        value: np.ndarray,
        threshold: float | np.ndarray,
        says: np.ndarray,
        *,
        n: np.ndarray = firings,
        interval: Estimate | None = None,
    ) -> ClaimTest:
        low, high = (unknown, unknown) if interval is None else (interval.low, interval.high)
        return ClaimTest(name, value.astype(float), np.broadcast_to(threshold, value.shape), n, says, low, high)

    def at_least(name: str, value: np.ndarray, least: float) -> ClaimTest:
        return test(name, value, least, np.where(value < least, DOUBTS, SILENT))

    def at_most(name: str, value: np.ndarray, most: float, beyond: str = DOUBTS, within: str = SILENT) -> ClaimTest:
        return test(name, value, most, _outcome(np.isnan(value), value <= most, within, beyond))

    ratio, excess, limit = stats.ratio, stats.excess, ratio_limit(stats, recipe)
    equal = ratio.low >= np.maximum(limit, recipe.equal_probe)
    ratio_outcome = np.select([np.isnan(ratio.value), equal, ratio.high <= limit], [SILENT, REFUTES, SUPPORTS], DOUBTS)
    yield test("probe_ratio", ratio.value, limit, ratio_outcome, interval=ratio)
    # Of one space the other source is known to carry the feature; latent scaling says whether it uses it.
    elsewhere, scaled = stats.elsewhere, ~np.isnan(stats.nu_error)
    told = [
        scaled | np.isnan(elsewhere.value) | (elsewhere.high <= limit),
        elsewhere.low >= np.maximum(limit, recipe.equal_probe),
    ]
    outcome = np.select(told, [SILENT, REFUTES], DOUBTS)
    yield test("other_layers", elsewhere.value, limit, outcome, interval=elsewhere)
    excess_outcome = np.select([np.isnan(excess.value), excess.low >= recipe.excess], [SILENT, SUPPORTS], DOUBTS)
    yield test("excess", excess.value, recipe.excess, excess_outcome, interval=excess)
    yield at_most("fdr", stats.fdr, recipe.fdr)
    # A twin whose rows the other sources cannot tell is not in them: it reads the owner, too.
    alike = stats.twin > recipe.twin
    twin_outcome = np.select([~alike | (ratio_outcome == SUPPORTS), ratio.low > limit], [SILENT, REFUTES], DOUBTS)
    yield test("twin", stats.twin, recipe.twin, twin_outcome)
    yield at_most("nu_error", stats.nu_error, recipe.nu_error, DOUBTS, SUPPORTS)
    yield at_most("nu_reconstruction", stats.nu_reconstruction, recipe.nu_reconstruction, DOUBTS, SUPPORTS)
    yield at_least("own_probe", stats.own, recipe.own_probe)
    yield at_least("firings", stats.firings, recipe.firings)
    yield at_least("documents", stats.documents, recipe.documents)
    yield at_most("density", stats.density, recipe.density)
    yield at_most("template_share", stats.template_share, recipe.template_share)
    yield at_most("first_token_share", stats.first_token_share, recipe.first_token_share)
    stability_outcome = np.where(stats.found_again < recipe.found_again, DOUBTS, SILENT)
    yield test("found_again", stats.found_again, recipe.found_again, stability_outcome, n=stats.other_runs)


def _outcome(unknown: np.ndarray, within: np.ndarray, if_within: str, beyond: str) -> np.ndarray:
    return np.select([unknown, within], [SILENT, if_within], beyond)


def verdict_shares(verdicts: Sequence[str]) -> dict[str, float]:
    """Share of each verdict among the claims; empty without claims."""
    judged = [verdict for verdict in verdicts if verdict]
    return {word: judged.count(word) / len(judged) for word in (SUPPORTED, REFUTED, UNDECIDED)} if judged else {}
