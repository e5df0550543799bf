"""Evidence: what the measures of a feature say about whose it is, in words a reader can check."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.results.connection import Source
from app.results.feature import Feature, InSource, Neighbour

DENSE_ABOVE = 0.1
"""Features that fire on more than this share of rows are seldom about one thing."""
FEW_BELOW = 30
"""Fewer firings than this tell little."""
TWIN_ABOVE = 0.5
"""Correlation from which a feature of another owner is likely to mean the same."""


@dataclass(frozen=True)
class Finding:
    """One measure with what it means."""

    measure: str
    value: float
    kind: str
    """share, number or ratio: how the value is written."""
    meaning: str
    warning: bool = False


def verdict_in_words(feature: Feature, sources: Sequence[Source]) -> str:
    """Whose feature it is and how well that is known, in one sentence."""
    if feature.firings == 0:
        return "Dead: it never fired on the rows analysed, so nothing can be said about it."
    if feature.owner == "shared":
        return f"Shared: {'both' if len(sources) == 2 else 'all'} sources write it about equally."
    if feature.owner == "other":
        return "Neither shared nor exclusive: one source writes it clearly more than the other, none of them alone."
    several = "+" in feature.owner
    only = f"Only {feature.owner.replace('+', ' and ')} write{'' if several else 's'} this feature"
    level = f" (q = {feature.q_value:.2g})" if feature.q_value is not None else ""
    endings = {
        "supported": f", and the tests support it{level}.",
        "refuted": f", but the tests refute that only its owner has it{level}.",
        "undecided": f"; the tests leave it undecided{level}.",
    }
    return only + endings.get(feature.verdict, " — a candidate, not yet tested.")


def findings(feature: Feature, inside: Sequence[InSource], neighbours: Sequence[Neighbour]) -> list[Finding]:
    """Every measure that bears on the claim, strongest evidence first; measures not taken are left out."""
    found = [*_scaling(feature, inside), *_readouts(inside), *_twins(feature, neighbours), *_norms(feature, inside)]
    return [*found, *_firing(feature)]


def _scaling(feature: Feature, inside: Sequence[InSource]) -> list[Finding]:
    found = []
    for each in inside:
        if each.name == feature.owner:
            continue
        for value, target in ((each.nu_reconstruction, "reconstruction"), (each.nu_error, "error")):
            if value is not None:
                meaning = (
                    f"Scaling the owner's feature to fit {each.name}'s {target}: near 0 it is truly absent there, "
                    "near 1 it is there after all."
                )
                found.append(Finding(f"ν {target}, {each.name}", value, "number", meaning, warning=value > 0.5))
    return found


def _readouts(inside: Sequence[InSource]) -> list[Finding]:
    meaning = "Part of the feature's activation that {name} alone predicts linearly; high means {name} knows it too."
    return [
        Finding(f"readout from {each.name}", each.readout, "share", meaning.format(name=each.name))
        for each in inside
        if each.readout is not None
    ]


def _twins(feature: Feature, neighbours: Sequence[Neighbour]) -> list[Finding]:
    twins = [one for one in neighbours if one.kind == "twin" and one.correlation is not None]
    if not twins:
        return []
    best = max(twins, key=lambda one: one.correlation or 0.0)
    value = best.correlation or 0.0
    claimed = feature.owner not in ("shared", "other")
    likely = value >= TWIN_ABOVE
    meaning = f"Feature {best.feature} ({best.owner}) fires on the same rows to this degree; " + (
        "it probably says the same thing." if likely else "too little to be the same thing."
    )
    return [Finding("closest twin, correlation", value, "number", meaning, warning=likely and claimed)]


def _norms(feature: Feature, inside: Sequence[InSource]) -> list[Finding]:
    found = []
    silent = [each.name for each in inside if not each.writes]
    for each in inside:
        if silent:
            meaning = (
                f"The group “{feature.group}” cannot write to {' or '.join(silent)}: "
                "this is so by construction and no evidence."
            )
        else:
            meaning = f"{each.name}'s part of the decoder norms; it was free to take any value."
        found.append(Finding(f"norm share of {each.name}", each.norm_share, "share", meaning))
    return found if not silent else found[:1] if inside[0].writes else found[-1:]


def _firing(feature: Feature) -> list[Finding]:
    found = [
        Finding(
            "density",
            feature.density,
            "share",
            f"{feature.firings:,} firings in {feature.documents or 0:,} documents; "
            + (
                "so dense that it is seldom about one thing."
                if feature.density > DENSE_ABOVE
                else "few, so every figure here is uncertain."
                if feature.firings < FEW_BELOW
                else "an ordinary number."
            ),
            warning=feature.density > DENSE_ABOVE or feature.firings < FEW_BELOW,
        )
    ]
    if feature.template_share is not None:
        meaning = "Part of its firings on chat-template positions; high means it may only mark the format."
        found.append(Finding("template share", feature.template_share, "share", meaning, feature.template_share > 0.5))
    if feature.first_token_share is not None:
        meaning = "Part of its firings in the first eight rows of a sequence; high means it may mark the position."
        share = feature.first_token_share
        found.append(Finding("first-token share", share, "share", meaning, warning=share > 0.5))
    if feature.corpus_share is not None:
        meaning = f"Part of its firings in the corpus part “{feature.corpus}”, which holds most of them."
        found.append(Finding("main corpus share", feature.corpus_share, "share", meaning))
    return found
