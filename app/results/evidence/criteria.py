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
    "supported": "It fires clearly more strongly than noise of the same shape would make it, linear probes of the "
    "others tell clearly less of where it fires than the owner's do, and no test raises a doubt. Of the kind absent it "
    "is *only here*, of the kind weaker *stronger here*.",
    "refuted": "*In both*: the others' probes tell about as well as the owner's where it fires, or a feature of "
    "another owner fires on the same rows and the others surely tell more of them than is allowed. Only evidence "
    "refutes; the lack of it never does.",
    "undecided": "Neither. Of the kind noise it is *like noise*, not shown to be a feature; otherwise one *can't "
    "tell*: the evidence is too weak, or a test raises a doubt.",
}
KINDS = {
    "absent": "Next to nothing of where it fires can be told from the others.",
    "weaker": "A part of where it fires can be told from the others, or that is not ruled out.",
    "analogue": "The others have a twin: a feature of their own that fires on the same rows.",
    "noise": "It fires hardly more strongly than noise would make it, so that nothing shows that it is a feature.",
}
IN_SHORT = {
    ("supported", "absent"): "only here",
    ("supported", "weaker"): "stronger here",
    ("undecided", "noise"): "like noise",
}
"""A claim's verdict and kind in a word or two; see `verdict_in_short` for the others."""
EFFECTS_IN_WORDS = {
    "supports": "evidence for the claim; the probe ratio and the excess must both say so before it is supported",
    "doubts": "keeps the claim from being supported",
    "refutes": "is evidence against the claim",
    "silent": "neutral: neither for nor against the claim",
}
LIMITS = (
    """Two questions decide: is it a feature, and whose is it? The *excess* answers the first. It compares the feature's
    energy, the sum of its squared activations, with that in the mirror, where what its owner holds beyond the others'
    linear prediction is reflected: noise is symmetric, a feature fires to one side. At an excess of 2 noise makes up
    half of the energy. Noise has directions too, and a dictionary finds them: they are truly the owner's, and mean
    nothing.""",
    """The *probe ratio* answers the second. A linear probe of each source, fitted on one half of the documents, ranks
    those rows of the other half that training never saw; its R-precision is the share of the feature's firings among
    the rows ranked first, as many as there are firings. The ratio divides that of the best probe outside the owner by
    that of the best inside. What probes cannot tell may still be there, in a form that no line finds. Where the models
    could be read again, other layers of the others are asked, too: what one has at its layer another may have earlier
    or later. Calibrations ask the compared layers alone.""",
    """Both are measured on the held-out rows: a dictionary fits the noise of the rows it was trained on. Both have 90 %
    intervals, over document groups drawn with replacement, and the end of the interval is compared with the threshold,
    not the value. Parts of one conversation, and texts that share most of their wording, are one group: they are one
    witness, not several. A wide interval leaves a claim undecided; it neither supports nor refutes.""",
    """How often the rule errs, only a calibrated run knows. It judges false claims by the same rule: features of a
    *noise null*, the same recipe trained on a source that was replaced by what the others predict of it plus noise, and
    *placebos*, random directions. The null also gives the *fdr*: the share of noise to expect among claims as strong.
    It covers noise, no other error. And it plants concepts in one source alone: where few of those that come back are
    supported, claims of that source cannot be judged well, and few supported ones say nothing of it.""",
    """A probe says what activations carry, not what the model makes of it. A fine-tune may use what its base only
    carries, so between sources of one space a larger probe ratio is allowed (`probe_ratio_same_space`), and latent
    scaling must not object.""",
    """A dictionary picks some directions of many, partly by chance. A second run with another `training.seed` tells
    which of them it finds again.""",
    """A verdict is about the text that was analysed, and about these layers. Steering shows what its owner makes of a
    feature; it does not show that the others lack it.""",
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
    refutation: str = ""
    """Why the claim is refuted, if it is for another reason than it is not supported."""
    end: str = ""
    """upper or lower: the end of its interval that is compared with the threshold; empty if the value is."""

    def passes(self, threshold: str) -> str:
        """The condition to be met, such as *upper end ≤ 0.5*."""
        return " ".join(part for part in (self.end and f"{self.end} end", self.side, threshold) if part)

    def refutes(self, threshold: str) -> str:
        """The condition under which it refutes, for those with a second threshold."""
        return f"refuted if lower end ≥ {threshold}"


CRITERIA = {
    "probe_ratio": Criterion(
        "Probe ratio",
        "How well linear probes of the others tell where it fires, over how well the owner's do (R-precision): near 0 "
        "when they tell nothing, 1 when they tell as much.",
        "number",
        "≤",
        "the others may tell more of where it fires than is allowed",
        "probe_ratio",
        "equal_probe",
        "the others tell about as well where it fires",
        "upper",
    ),
    "other_layers": Criterion(
        "Probe ratio at other layers",
        "The largest probe ratio with another layer of the others' models in the place of the one compared: a quarter, "
        "a half, three quarters and all of their depth.",
        "number",
        "≤",
        "another layer of the other models may tell more of where it fires than is allowed",
        "probe_ratio",
        "equal_probe",
        "another layer of the other models tells about as well where it fires",
        "upper",
    ),
    "excess": Criterion(
        "Excess over noise",
        "How many times as much energy (sum of squared activations) it has as noise of the same shape would give it: "
        "about 1 for a direction that means nothing.",
        "number",
        "≥",
        "it is not shown to fire more strongly than noise would make it, by enough",
        "excess",
        end="lower",
    ),
    "fdr": Criterion(
        "Expected share of noise, fdr",
        "The share of noise to expect among this owner's claims with an excess at least as large, by the noise null of "
        "the calibration.",
        "share",
        "≤",
        "noise gave claims as strong too often",
        "fdr",
    ),
    "twin": Criterion(
        "Closest twin",
        "Correlation over all rows with the most similar feature of another owner. Refutes if the lower end of the "
        "probe ratio is above its limit, so that the others tell those rows; a doubt if its interval holds the limit.",
        "number",
        "≤",
        "a feature of another owner fires on the same rows, and the others may tell them",
        "twin",
        refutation="a feature of another owner fires on the same rows, and the others tell them",
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
    "own_probe": Criterion(
        "Owner's probe",
        "The R-precision of the owner's own probe; below the threshold there is nothing to compare with.",
        "share",
        "≥",
        "even the owner's probe hardly tells where it fires, so probes cannot be compared",
        "own_probe",
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
        "The share of other trainings, of the same run or of other runs of the comparison, that have the feature too.",
        "share",
        "≥",
        "other trainings do not find it again",
        "found_again",
    ),
}


@dataclass(frozen=True)
class CriterionResult:
    """Result of one criterion for a feature's claim, with its words."""

    test: str
    name: str
    value: float
    low: float | None
    """Bounds of the value's 90 % interval over document groups; None where it has none."""
    high: float | None
    threshold: float | None
    n: int | None
    """Number of firings or runs behind the value."""
    says: str
    """supports, doubts, refutes or silent."""
    asks: str
    shown: str
    side: str
    end: str
    """upper or lower: the end of the interval that is compared with the threshold; empty if the value is."""


def criterion_result(
    test: str,
    value: float,
    threshold: float | None,
    n: int | None,
    says: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> CriterionResult:
    """Adds words to a result as the results file has it."""
    words = criterion(test)
    return CriterionResult(
        test, words.name, value, low, high, threshold, n, says, words.asks, words.shown, words.side, words.end
    )


def verdict_in_short(verdict: str, kind: str | None) -> str:
    """A claim's verdict in a word or two; the verdict itself if there are no others for it."""
    others = {"refuted": "in both", "undecided": "can't tell"}
    return IN_SHORT.get((verdict, kind or "")) or others.get(verdict, verdict)


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
