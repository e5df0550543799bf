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
        return (
            f"{claim}, but the tests refute that this is a difference: {_refuted(feature, others, tests, neighbours)}."
        )
    if feature.verdict == "undecided":
        return f"{claim}; the tests leave it undecided: {_undecided(feature, tests)}."
    return f"{claim} — a candidate, not yet tested."


def _unclaimed(feature: Feature, sources: Sequence[Source]) -> str:
    if feature.owner == "shared":
        return f"Shared: {'both' if len(sources) == 2 else 'all'} sources write it about equally."
    return "Neither shared nor exclusive: one source writes it clearly more than the other, none of them alone."


def _supported(feature: Feature, owner: str, others: str, *, several: bool) -> str:
    has = "have" if several else "has"
    level = "" if feature.q_value is None else f" (q = {feature.q_value:.2g})"
    if feature.kind == "weaker":
        return (
            f"{owner} {has} this feature and {others} {_has_less(others)} of it, and the tests support that, of the "
            f"kind “weaker”: a part of it can be predicted from {others} too{level}."
        )
    kind = (
        f", of the kind “absent”: next to nothing of it can be predicted from {others}"
        if feature.kind == "absent"
        else ""
    )
    return f"Only {owner} {has} this feature, and the tests support it{kind}{level}."


def _has_less(others: str) -> str:
    """*has less*, or *have less* for several sources."""
    return "have less" if " and " in others else "has less"


def _refuted(feature: Feature, others: str, tests: Sequence[CriterionResult], neighbours: Sequence[Neighbour]) -> str:
    twin = closest_twin(neighbours)
    if feature.kind == "analogue" and twin is not None:
        return f"feature {twin.feature} ({twin.owner}) fires on the same rows, so it is an analogue"
    reasons = [criterion(one.test).reason for one in tests if one.says == "refutes"]
    return next((reason for reason in reasons if reason), f"{others} has it as well")


def _undecided(feature: Feature, tests: Sequence[CriterionResult]) -> str:
    reasons = [criterion(one.test).reason or one.name for one in tests if one.says == "doubts"]
    if not reasons and feature.q_value is None:
        return "there was nothing known to be false to hold it against"
    if not reasons:
        return f"false claims look as strong too often (q = {feature.q_value:.2g})"
    return _listed(reasons[:3])


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
