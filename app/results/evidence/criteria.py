"""How a claim that only some source has a feature is judged, in words.

`trainer/analysis/claims/verdict.py` applies the rule.

Pages, the JSON interface and docs/evidence.md take their words from here. A test without an entry is shown under its
own name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAYS = ("refutes", "doubts", "supports", "silent")
"""What a test can say of a claim, the weightiest first."""

INTRODUCTION = (
    "A feature is claimed for a source when the source holds most of its decoder norms, or when its group can write "
    "nowhere else. That makes a claim and supports none: a dedicated group is filled by construction, even when a "
    "model is compared with itself. Every claim is therefore tested, all in the same way, whichever source it favours."
)
VERDICTS = {
    "supported": "The others' activations tell little of the feature, so little that a false claim seldom looks like "
    "it, and no test raises a doubt.",
    "refuted": "The claim is wrong as it stands: a feature of another owner fires on the same rows, or the others' "
    "activations tell the feature about as well as the owner's do, or as well as they tell features that all have.",
    "undecided": "Neither: the evidence is too weak, or a test raises a doubt.",
    "untested": "The run was published without tests.",
}
KINDS = {
    "absent": "Next to nothing of the feature can be told from the others.",
    "weaker": "A part of it can be told from the others.",
    "analogue": "The others have a twin: a feature of their own that fires on the same rows.",
}
SAYINGS = {
    "supports": "speaks for the claim; the first two tests below must, before it is supported",
    "doubts": "keeps the claim from being supported",
    "refutes": "settles that the claim is wrong",
    "silent": "neither helps nor harms the claim",
}
LIMITS = (
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
    """One test in words."""

    name: str
    asks: str
    shown: str
    """share, number or count: how its value is written."""
    side: str = ""
    """Sign of the side of the threshold on which the claim is well: ≤ or ≥; empty when there is none."""
    otherwise: str = ""
    """Why the claim is not supported, when this test says so: the end of a sentence with *because*."""
    setting: str = ""
    """Key of its threshold in the recipe, under `analysis.verdict`."""
    refuting: str = ""
    """Key of another threshold, from which on it refutes the claim."""


QUESTIONS = {
    "readout_contrast": Criterion(
        "Told from the others",
        "How much of it the others' activations tell, over what the owner's tell: 0 when they cannot know where it "
        "fires, 1 when they know as well. Both count what chance costs a readout, so it is above the list's ratio.",
        "number",
        "≤",
        "the others' activations tell a good part of it",
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
        "the others tell it as well as they tell features that all have",
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
        "Told from the owner",
        "How much of it the owner's own activations tell; below the threshold there is nothing to compare with.",
        "share",
        "≥",
        "even the owner's activations hardly tell it, so readouts cannot be compared",
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
        "The share of its firings in the first eight rows of a sequence, where it may only mark the place.",
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
class Test:
    """One test of a feature's claim, with its words."""

    test: str
    name: str
    value: float
    threshold: float | None
    n: int | None
    """On how many rows, decoys or runs the value rests."""
    says: str
    """supports, doubts, refutes or silent."""
    asks: str
    shown: str
    side: str


def worded(test: str, value: float, threshold: float | None, n: int | None, says: str) -> Test:
    """A test as the results have it, in words."""
    asked = question(test)
    return Test(test, asked.name, value, threshold, n, says, asked.asks, asked.shown, asked.side)


def question(test: str) -> Criterion:
    """A test's words, or its own name for one that has none here."""
    return QUESTIONS.get(test) or Criterion(test.replace("_", " ").capitalize(), "", "number")


def in_order(tests: Sequence[Test]) -> list[Test]:
    """Tests by the weight of what they say, then as they are listed here."""
    place = {name: number for number, name in enumerate(QUESTIONS)}
    weight = {says: number for number, says in enumerate(SAYS)}
    return sorted(tests, key=lambda one: (weight.get(one.says, len(SAYS)), place.get(one.test, len(place))))


def thresholds(recipe: Mapping[str, object]) -> dict[str, float]:
    """The thresholds that a run's recipe sets, by test; tests whose threshold it does not know are left out."""
    return _settings(recipe, {test: asked.setting for test, asked in QUESTIONS.items()})


def refuting_from(recipe: Mapping[str, object]) -> dict[str, float]:
    """From where on tests refute, for those for which a run's recipe says it apart from their threshold."""
    return _settings(recipe, {test: asked.refuting for test, asked in QUESTIONS.items()})


def _settings(recipe: Mapping[str, object], keys: Mapping[str, str]) -> dict[str, float]:
    analysis = recipe.get("analysis")
    verdict = analysis.get("verdict") if isinstance(analysis, Mapping) else None
    known = verdict if isinstance(verdict, Mapping) else {}
    found = {test: known.get(key) for test, key in keys.items()}
    return {test: float(value) for test, value in found.items() if isinstance(value, int | float)}
