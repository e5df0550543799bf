"""Puts a feature's verdict, claim and measures into words."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.results.connection import Source
from app.results.evidence.criteria import CriterionResult, criterion
from app.results.features.feature import Feature, InSource, Neighbour

TWIN_ABOVE = 0.5
"""Correlation from which on a feature of another owner probably has the same meaning."""


@dataclass(frozen=True)
class WordedMeasure:
    """A measure with its value and meaning."""

    measure: str
    value: float
    kind: str
    """share or number: how the value is written."""
    meaning: str


def verdict_in_words(
    feature: Feature,
    sources: Sequence[Source],
    tests: Sequence[CriterionResult] = (),
    neighbours: Sequence[Neighbour] = (),
) -> str:
    """One sentence, fit for a report: the feature's owner, and the verdict on its claim."""
    if feature.firings == 0:
        return "Dead: it never fired on the rows analysed, so nothing can be said about it."
    if feature.owner in ("shared", "other"):
        return _unclaimed(feature, sources)
    owner, several = feature.owner.replace("+", " and "), "+" in feature.owner
    members = feature.owner.split("+")
    others = _listed([source.name for source in sources if source.name not in members]) or "any other source"
    if feature.verdict == "supported":
        return _supported(feature, owner, others, several=several)
    claim = f"Claimed for {owner} alone"
    if feature.verdict == "refuted":
        where = "In both" if len(sources) == 2 else "Not only here"
        return f"{where}: {_lower(claim)}, but {_refuted(feature, others, tests, neighbours)}."
    if feature.verdict == "undecided":
        return f"{claim}{_undecided(feature, tests)}."
    return f"{claim} — a candidate, not yet tested."


def _unclaimed(feature: Feature, sources: Sequence[Source]) -> str:
    if feature.owner == "shared":
        return f"Shared: {'both' if len(sources) == 2 else 'all'} sources write it about equally."
    return "Neither shared nor exclusive: one source writes it clearly more than the other, none of them alone."


def _noise(fdr: float | None) -> str:
    if fdr is None:
        return "The run is not calibrated for this owner, so the share of noise among such claims is not known"
    if fdr == 0:
        return "Where its owner was replaced by noise of the same shape, no claim as strong came up"
    return f"Among claims as strong, a share of {fdr:.2g} is expected to be noise"


def _supported(feature: Feature, owner: str, others: str, *, several: bool) -> str:
    ratio = _interval("probe ratio", feature.probe_ratio, feature.probe_low, feature.probe_high)
    excess = _interval("excess", feature.excess, feature.excess_low, feature.excess_high)
    share = _noise(feature.fdr)
    has = "have" if several else "has"
    if feature.kind == "absent":
        claim = (
            f"Only here: {owner} {has} this feature, and next to nothing of where it fires can be told from {others}"
        )
    else:
        claim = (
            f"Stronger here: {owner} {has} this feature, and at most a part of where it fires can be told from {others}"
        )
    return f"{claim}{ratio}. It fires more strongly than noise would make it{excess}. {share}."


def _interval(measure: str, value: float | None, low: float | None, high: float | None) -> str:
    """A measure with its interval, in brackets; empty if it is not known."""
    if value is None:
        return ""
    bounds = "" if low is None or high is None else f", 90 % interval {low:.2g} to {high:.2g}"
    return f" ({measure} {value:.2g}{bounds})"


def _lower(words: str) -> str:
    return words[0].lower() + words[1:]


def _refuted(feature: Feature, others: str, tests: Sequence[CriterionResult], neighbours: Sequence[Neighbour]) -> str:
    twin = closest_twin(neighbours)
    if feature.kind == "analogue" and twin is not None:
        told = _interval("probe ratio", feature.probe_ratio, feature.probe_low, feature.probe_high)
        alike = f"feature {twin.feature} ({twin.owner}) fires much as it does (correlation {twin.correlation:.2f})"
        return f"{alike}, and {others} {'tell' if ' and ' in others else 'tells'} too much of where it fires{told}"
    refuting = [criterion(one.test) for one in tests if one.says == "refutes"]
    reasons = [each.refutation or each.reason for each in refuting]
    found = next((reason for reason in reasons if reason), f"{others} has it as well")
    return found + _interval("probe ratio", feature.probe_ratio, feature.probe_low, feature.probe_high)


UNMEASURED = {
    "probe_ratio": "it fired too seldom to be probed",
    "excess": "its excess over noise could not be measured",
}
"""Why nothing can be said of a claim for which a test was not made that must support it."""


def _undecided(feature: Feature, tests: Sequence[CriterionResult]) -> str:
    if feature.kind == "noise":
        excess = _interval("excess", feature.excess, feature.excess_low, feature.excess_high)
        words = "it fires hardly more strongly than noise of the same shape would make it"
        return f", but not shown to be a feature: {words}{excess}"
    reasons = [criterion(one.test).reason or one.name for one in tests if one.says == "doubts"]
    made = {one.test for one in tests}
    reasons += [reason for test, reason in UNMEASURED.items() if test not in made]
    return f"; whether that is so can't be told: {_listed(reasons[:3]) or 'the evidence is too weak'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def closest_twin(neighbours: Sequence[Neighbour]) -> Neighbour | None:
    """The feature of another owner that fires most on the same rows."""
    twins = [one for one in neighbours if one.kind == "twin" and one.correlation is not None]
    return max(twins, key=lambda one: one.correlation or 0.0, default=None)


def claim_in_words(feature: Feature, inside: Sequence[InSource]) -> WordedMeasure | None:
    """The norm share that makes the claim, which is no evidence for it; None without a claim."""
    if not feature.claimed:
        return None
    members = feature.owner.split("+")
    share = sum(each.norm_share for each in inside if each.name in members)
    silent = [each.name for each in inside if not each.writes]
    if silent and not {each.name for each in inside if each.writes} - set(members):
        why = f"The group “{feature.group}” cannot write to {' or '.join(silent)}: this is so by construction."
    else:
        why = "It was free to take any value; training with a sparse dictionary often exaggerates it."
    return WordedMeasure("Norm share", share, "share", why)


def measures_in_words(inside: Sequence[InSource], neighbours: Sequence[Neighbour]) -> list[WordedMeasure]:
    """Readouts, norm shares and the closest twin of a feature; measures not taken are left out."""
    found = [
        WordedMeasure(
            f"Readout from {each.name}",
            each.readout,
            "share",
            f"Part of the feature's activation that {each.name}'s activations predict linearly.",
        )
        for each in inside
        if each.readout is not None
    ]
    found += [
        WordedMeasure(f"Norm share of {each.name}", each.norm_share, "share", "Part of its decoder norms.")
        for each in inside
    ]
    twin = closest_twin(neighbours)
    if twin is not None and twin.correlation is not None:
        likely = "it probably says the same thing" if twin.correlation >= TWIN_ABOVE else "too little to be the same"
        meaning = f"Feature {twin.feature} ({twin.owner}) fires on the same rows to this degree; {likely}."
        found.append(WordedMeasure("Closest twin", twin.correlation, "number", meaning))
    return found


def coherence_in_words(feature: Feature) -> str | None:
    """What its coherence implies about polysemy; None without a coherence."""
    if feature.coherence is None:
        return None
    if feature.polysemous:
        return "It may stand for several things: activations at two of its firings have next to nothing in common"
    return "Activations at two of its firings have something in common, as they do for one thing"
