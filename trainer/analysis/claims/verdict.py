"""Verdict: what the evidence makes of the claim that only a feature's owner has it; the one place with the rule.

- *Refuted* when a feature of another owner fires on the same rows as strongly (a twin), when the other side's
  activations tell the feature nearly as well as the owner's do, or as well as they tell decoys, which both sides have.
- *Supported* when the other side's activations tell at most half of what the owner's tell, so seldom among decoys that
  the q-value is small, and nothing raises a doubt: too few firings or documents, a density at which nothing has one
  meaning, firings mostly on chat templates or first rows, a readout too poor to compare, latent scaling that finds the
  direction in the other source, or other runs of the comparison that do not have the feature.
- *Undecided* otherwise. A norm ratio or a place in a dedicated group makes a claim and supports none.

A claim that stands is of a *kind*: `absent` when next to nothing of the feature can be told from the other side,
`weaker` when a part can, `analogue` when the other side has a twin. Axis F: features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.contrast import Contrast
from trainer.recipe.measuring import VerdictRecipe

SUPPORTS, DOUBTS, REFUTES, SILENT = "supports", "doubts", "refutes", "silent"
"""What a test says of a claim. Doubts keep it from being supported; silent tests neither help nor harm."""
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
NEEDED = ("readout_contrast", "q_value")
"""Tests that must speak for a claim before it is supported."""


@dataclass(frozen=True)
class FeatureStats:
    """What is known of every feature [F]; NaN where something is not."""

    contrast: Contrast
    p_value: np.ndarray
    """Share of the decoys of its owner that look at least as exclusive."""
    q_value: np.ndarray
    decoys: np.ndarray
    """How many decoys decided, int64 [F]."""
    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    template_share: np.ndarray
    first_token_share: np.ndarray
    twin: np.ndarray
    """Largest correlation with a feature of another owner."""
    nu_error: np.ndarray
    """Largest over the sources that the claim leaves out; NaN across spaces."""
    nu_reconstruction: np.ndarray
    found_again: np.ndarray
    """Share of the other runs of the comparison that have the feature too."""
    other_runs: np.ndarray
    """How many other runs there are, int64 [F]."""

    def of(self, some: np.ndarray) -> "FeatureStats":
        """The facts of some features, by their indices."""
        contrast = Contrast(self.contrast.own[some], self.contrast.other[some], self.contrast.slack)
        rest = {field.name: getattr(self, field.name)[some] for field in fields(self) if field.name != "contrast"}
        return FeatureStats(contrast, **rest)


@dataclass(frozen=True)
class Test:
    """One test of every claim. Axis C: claims."""

    name: str
    value: np.ndarray
    """[C]; NaN where it was not made."""
    threshold: np.ndarray
    """What the value is held against [C]."""
    n: np.ndarray
    """How much the value rests on: firings, or decoys or other runs where those decide, int64 [C]."""
    says: np.ndarray
    """SUPPORTS, DOUBTS, REFUTES or SILENT [C]."""


@dataclass(frozen=True)
class Judgement:
    """Verdicts on all features [F], and the tests of the claims."""

    verdict: list[str]
    """Empty for features that are no claim."""
    kind: list[str | None]
    claims: np.ndarray
    """Features that are claims, int64 [C]."""
    tests: tuple[Test, ...]

    def columns(self) -> dict[str, np.ndarray | pa.Array]:
        """Columns of the table `evidence`, by feature and test; tests that were not made are left out."""
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


def judge(claims: np.ndarray, facts: FeatureStats, recipe: VerdictRecipe) -> Judgement:
    """Verdicts on all features, of which `claims`, bool [F], say that some source lacks them."""
    index = np.flatnonzero(claims)
    mine = facts.of(index)
    tests = tuple(_tests(mine, recipe))
    said = {test.name: test.says for test in tests}
    every = np.stack([test.says for test in tests], axis=1)
    refuted = (every == REFUTES).any(axis=1)
    supported = ~refuted & ~(every == DOUBTS).any(axis=1)
    for name in NEEDED:
        supported &= said[name] == SUPPORTS
    words = np.select([refuted, supported], [REFUTED, SUPPORTED], UNDECIDED)
    kinds = np.select(
        [said["twin"] == REFUTES, refuted | np.isnan(mine.contrast.ratio), mine.contrast.ratio <= recipe.absent_below],
        ["analogue", "", "absent"],
        "weaker",
    )
    verdict, kind = np.full(len(claims), "", object), np.full(len(claims), None, object)
    verdict[index], kind[index] = words, [one or None for one in kinds]
    return Judgement(verdict.tolist(), kind.tolist(), index, tests)


def largest_ratio(facts: FeatureStats, recipe: VerdictRecipe) -> np.ndarray:
    """Up to which readout ratio each claim may stand [F].

    Sources of one space carry nearly the same information, also where one of them makes nothing of it. There latent
    scaling says whether the other source writes the direction, and the readout need only differ from decoys.
    """
    scaled = ~np.isnan(facts.nu_error) & ~np.isnan(facts.nu_reconstruction)
    return np.where(scaled, recipe.readout_contrast_same_space, recipe.readout_contrast)


def _tests(facts: FeatureStats, recipe: VerdictRecipe) -> Iterator[Test]:
    """The rule, one test at a time."""
    ratio, firings = facts.contrast.ratio, facts.firings.astype(np.int64)

    def test(name: str, value: np.ndarray, threshold: float | np.ndarray, says: np.ndarray, n: np.ndarray) -> Test:
        return Test(name, value.astype(float), np.broadcast_to(threshold, value.shape), n, says)

    def at_least(name: str, value: np.ndarray, least: float) -> Test:
        return test(name, value, least, np.where(value < least, DOUBTS, SILENT), firings)

    def at_most(name: str, value: np.ndarray, most: float, beyond: str = DOUBTS, within: str = SILENT) -> Test:
        return test(name, value, most, _says(np.isnan(value), value <= most, within, beyond), firings)

    limit = largest_ratio(facts, recipe)
    enough = facts.contrast.own >= recipe.owner_readout
    equal = enough & (ratio >= np.maximum(limit, recipe.equal_readout))
    told = np.select([np.isnan(ratio), equal, ratio <= limit], [SILENT, REFUTES, SUPPORTS], DOUBTS)
    yield test("readout_contrast", ratio, limit, told, firings)
    ordinary = (facts.p_value >= recipe.refuted_from) & (ratio > limit)
    like = np.where(ordinary, REFUTES, SILENT)
    yield test("like_decoys", facts.p_value, recipe.refuted_from, like, facts.decoys)
    small = facts.q_value <= recipe.q_value
    yield test("q_value", facts.q_value, recipe.q_value, np.where(small, SUPPORTS, SILENT), facts.decoys)
    yield at_most("twin", facts.twin, recipe.twin, REFUTES)
    yield at_most("nu_error", facts.nu_error, recipe.nu_error, DOUBTS, SUPPORTS)
    yield at_most("nu_reconstruction", facts.nu_reconstruction, recipe.nu_reconstruction, DOUBTS, SUPPORTS)
    yield at_least("owner_readout", facts.contrast.own, recipe.owner_readout)
    yield at_least("firings", facts.firings, recipe.firings)
    yield at_least("documents", facts.documents, recipe.documents)
    yield at_most("density", facts.density, recipe.density)
    yield at_most("template_share", facts.template_share, recipe.template_share)
    yield at_most("first_token_share", facts.first_token_share, recipe.first_token_share)
    seldom = np.where(facts.found_again < recipe.found_again, DOUBTS, SILENT)
    yield test("found_again", facts.found_again, recipe.found_again, seldom, facts.other_runs)


def _says(unknown: np.ndarray, within: np.ndarray, if_within: str, beyond: str) -> np.ndarray:
    return np.select([unknown, within], [SILENT, if_within], beyond)


def shares(verdicts: Sequence[str]) -> dict[str, float]:
    """Share of the claims with each verdict; empty without claims."""
    judged = [verdict for verdict in verdicts if verdict]
    return {word: judged.count(word) / len(judged) for word in (SUPPORTED, REFUTED, UNDECIDED)} if judged else {}
