"""Describes the criteria by which a claim of exclusivity is judged.

`trainer/analysis/claims/verdict.py` applies them.

Pages, the JSON interface and docs/evidence.md take their words from here. A criterion without an entry is shown under
its own name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EFFECTS = ("refutes", "doubts", "supports", "silent")
"""How a criterion can bear on a claim, the most decisive first."""

INTRODUCTION = (
    "A feature is claimed for a source when the source holds most of its decoder norms, or when its group can write "
    "nowhere else. That makes a claim and supports none: a dedicated group is filled by construction, even when a "
    "model is compared with itself. Every claim is therefore tested, all in the same way, whichever source it favours."
)
VERDICTS = {
    "supported": "The others' activations predict the feature poorly, so poorly that a false claim seldom looks like "
    "it, and no test raises a doubt.",
    "refuted": "The evidence is against the claim: a feature of another owner fires on the same rows, or the others' "
    "activations predict it about as well as the owner's do, or as well as they predict features that all have.",
    "undecided": "Neither: the evidence is too weak, or a test raises a doubt.",
    "untested": "The run was published without tests.",
}
KINDS = {
    "absent": "Next to nothing of the feature can be predicted from the others.",
    "weaker": "A part of it can be predicted from the others.",
    "analogue": "The others have a twin: a feature of their own that fires on the same rows.",
}
EFFECTS_IN_WORDS = {
    "supports": "evidence for the claim; the first two tests below must say so before it is supported",
    "doubts": "keeps the claim from being supported",
    "refutes": "is evidence against the claim",
    "silent": "neutral: neither for nor against the claim",
}
LIMITS = (
    """The criteria ask whether the others' activations predict a feature less well than they predict features known to
    be shared. They do not ask whether it is a feature at all: a null without concepts (one model's activations replaced
    by their linear prediction from the other plus Gaussian noise of the same covariance) had 76 claims supported where
    the demo has 102. A supported claim is a candidate that is weaker on the other side, and q is no error rate against
    such noise.""",
    """q-values are learned from decoys: shared features, seen through the owner's activations alone and tested as if
    they were claimed. Whatever is claimed of them is false, so they show how exclusive a false claim can look. A
    calibrated run adds a null run, in which every claim is false by construction, and the more doubtful of both
    counts.""",
    """A readout says what activations carry, not what the model makes of it. A fine-tune may use what its base only
    carries, so between sources of one space a larger readout ratio is allowed (`readout_contrast_same_space`), and
    latent scaling must not object.""",
    """A dictionary picks some directions of many, partly by chance. A second run with another `training.seed` tells
    which of them it finds again.""",
    """A verdict is about the text that was analysed. Steering is the causal test: a feature that matters changes what
    its owner writes.""",
)


@dataclass(frozen=True)
class Criterion:
    """A criterion in words."""

    name: str
    asks: str
    shown: str
    """share, number or count: how its value is written."""
    side: str = ""
    """≤, < or ≥: how the value compares with the threshold when the criterion is met; empty without a threshold."""
    reason: str = ""
    """Why the claim is not supported when the criterion is not met: completes a sentence with *because*."""
    setting: str = ""
    """Key of its threshold in the recipe, under `analysis.verdict`."""
    refuting: str = ""
    """Key of a second threshold, from which on the criterion refutes the claim."""


CRITERIA = {
    "readout_contrast": Criterion(
        "Readout from the others",
        "How well the others' activations predict it, over how well the owner's do: 0 when they cannot say where it "
        "fires, 1 when they predict it as well. Both include what chance costs, so it exceeds the list's ratio.",
        "number",
        "≤",
        "the others' activations predict a good part of it",
        "readout_contrast",
        "equal_readout",
    ),
    "q_value": Criterion(
        "Expected error, q",
        "The share of false claims to expect among claims at least as strong as this one.",
        "number",
        "≤",
        "false claims look as strong too often",
        "q_value",
    ),
    "like_decoys": Criterion(
        "Decoys like it",
        "The share of decoys, known to be false, that look at least as exclusive.",
        "share",
        "<",
        "the others predict it as well as they predict features that all have",
        "refuted_from",
    ),
    "twin": Criterion(
        "Closest twin",
        "Correlation over all rows with the most similar feature of another owner.",
        "number",
        "≤",
        "a feature of another owner fires on the same rows",
        "twin",
    ),
    "nu_error": Criterion(
        "ν of the error",
        "Latent scaling: how much of its direction is in what the dictionary leaves unexplained of the other source, "
        "over the owner's. High when the dictionary missed it there.",
        "number",
        "≤",
        "its direction is in what the dictionary missed of the other source",
        "nu_error",
    ),
    "nu_reconstruction": Criterion(
        "ν of the reconstruction",
        "Latent scaling: how much of its direction is in the other source's reconstruction, over the owner's. High "
        "when other features write it there.",
        "number",
        "≤",
        "other features write its direction in the other source",
        "nu_reconstruction",
    ),
    "owner_readout": Criterion(
        "Readout from the owner",
        "How well the owner's own activations predict it; below the threshold there is nothing to compare with.",
        "share",
        "≥",
        "even the owner's activations hardly predict it, so readouts cannot be compared",
        "owner_readout",
    ),
    "firings": Criterion("Firings", "Rows on which it fired.", "count", "≥", "it fired too seldom", "firings"),
    "documents": Criterion(
        "Documents", "Documents in which it fired.", "count", "≥", "it fired in too few documents", "documents"
    ),
    "density": Criterion(
        "Density",
        "The share of rows on which it fires; what fires on very many seldom means one thing.",
        "share",
        "≤",
        "it fires on too many rows to mean one thing",
        "density",
    ),
    "template_share": Criterion(
        "On chat templates",
        "The share of its firings on chat-template positions, where it may only mark the format.",
        "share",
        "≤",
        "it fires mostly on chat templates",
        "template_share",
    ),
    "first_token_share": Criterion(
        "On first tokens",
        "The share of its firings in the first eight rows of a sequence, where it may mark nothing but the position.",
        "share",
        "≤",
        "it fires mostly on first tokens",
        "first_token_share",
    ),
    "found_again": Criterion(
        "Found again",
        "The share of other runs of the same comparison, with another seed or variant, that have the feature too.",
        "share",
        "≥",
        "other runs of the same comparison do not find it again",
        "found_again",
    ),
}


@dataclass(frozen=True)
class CriterionResult:
    """Result of one criterion for a feature's claim, with its words."""

    test: str
    name: str
    value: float
    threshold: float | None
    n: int | None
    """Number of rows, decoys or runs behind the value."""
    says: str
    """supports, doubts, refutes or silent."""
    asks: str
    shown: str
    side: str


def criterion_result(test: str, value: float, threshold: float | None, n: int | None, says: str) -> CriterionResult:
    """Adds words to a result as the results file has it."""
    words = criterion(test)
    return CriterionResult(test, words.name, value, threshold, n, says, words.asks, words.shown, words.side)


def criterion(test: str) -> Criterion:
    """The criterion of this name; an unknown one is described by its name alone."""
    return CRITERIA.get(test) or Criterion(test.replace("_", " ").capitalize(), "", "number")


def sorted_by_effect(tests: Sequence[CriterionResult]) -> list[CriterionResult]:
    """Results by effect, the most decisive first, then in the order of `CRITERIA`."""
    position = {name: number for number, name in enumerate(CRITERIA)}
    weight = {says: number for number, says in enumerate(EFFECTS)}
    return sorted(tests, key=lambda one: (weight.get(one.says, len(EFFECTS)), position.get(one.test, len(position))))


def thresholds(recipe: Mapping[str, object]) -> dict[str, float]:
    """Thresholds in a run's recipe, by criterion; criteria that it has no threshold for are left out."""
    return _settings(recipe, {test: words.setting for test, words in CRITERIA.items()})


def refuting_thresholds(recipe: Mapping[str, object]) -> dict[str, float]:
    """Second thresholds in a run's recipe, from which on criteria refute, by criterion."""
    return _settings(recipe, {test: words.refuting for test, words in CRITERIA.items()})


def _settings(recipe: Mapping[str, object], keys: Mapping[str, str]) -> dict[str, float]:
    analysis = recipe.get("analysis")
    verdict = analysis.get("verdict") if isinstance(analysis, Mapping) else None
    known = verdict if isinstance(verdict, Mapping) else {}
    found = {test: known.get(key) for test, key in keys.items()}
    return {test: float(value) for test, value in found.items() if isinstance(value, int | float)}
