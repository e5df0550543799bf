"""Puts what was found of each source, and how far that can be trusted, into the first sentences of the overview."""

from collections.abc import Sequence

from app.results.connection import Results
from app.results.evidence.calibration import VerdictReliability, verdict_reliability
from app.results.runs.findings import Finding, findings_of
from app.results.runs.summary import OwnerCount, headline_of


def sentence_of(results: Results) -> str:
    """The sentences of a run with results."""
    names = [source.name for source in results.sources]
    owners, found = headline_of(results).owners, findings_of(results).findings
    return headline_sentence(names, owners, found, verdict_reliability(results))


def headline_sentence(
    sources: Sequence[str], owners: Sequence[OwnerCount], findings: Sequence[Finding], reliability: VerdictReliability
) -> str:
    """What every source has that the others lack, what predictions say, how many may be wrong, and what is missed."""
    counts = {one.owner: one for one in owners}
    clauses = [_about(name, sources, counts.get(name)) for name in sources]
    several = [one for one in owners if "+" in one.owner and one.supported]
    clauses += [_several(one.owner.split("+"), one.supported) for one in several]
    return " ".join([". ".join(clauses) + ".", *_predictions(findings), _trust(findings, reliability)])


def _about(name: str, sources: Sequence[str], count: OwnerCount | None) -> str:
    if count is None or not count.claimed:
        return f"{name}: no feature is claimed for it alone"
    if not count.tested:
        return f"{name}: none of its {count.claimed:,} claims was tested"
    if not count.supported:
        weak = ", and this side can't be judged well" if count.weak else ""
        return f"{name}: none of {count.tested:,} tested claims held up{weak}"
    one = count.supported == 1
    others = " and ".join(other for other in sources if other != name)
    lack = "lacks or has less of" if len(sources) == 2 else "lack or have less of"
    return f"{name} has {count.supported:,} feature{'' if one else 's'} that {others} {lack}"


def _predictions(findings: Sequence[Finding]) -> list[str]:
    texts = sum(one.kind == "passage" for one in findings)
    features = sum(one.kind == "divergence" for one in findings)
    told = []
    if texts:
        told.append(f"on {texts} kind{'' if texts == 1 else 's'} of text")
    if features:
        told.append(f"after {features} feature{'' if features == 1 else 's'}")
    return [f"Predictions are surely farther apart {' and '.join(told)}."] if told else []


def _several(names: Sequence[str], supported: int) -> str:
    return f"{' and '.join(names)} have {supported:,} feature{'' if supported == 1 else 's'} that no other has"


def _trust(findings: Sequence[Finding], reliability: VerdictReliability) -> str:
    parts = []
    unknown = sum(one.fdr is None for one in findings)
    if unknown < len(findings):
        wrong = expected_wrong(findings)
        parts.append("The nulls have none as strong." if not wrong else f"About {max(wrong, 1):.0f} may be wrong.")
    if unknown:
        parts.append(f"The error rate of {unknown:,} of these is not known.")
    planted = reliability.planted(exclusive=True)
    if planted and planted.planted:
        share = planted.supported / planted.planted
        parts.append(f"The search finds {share:.0%} of planted features; absence is not shown.".replace("%", " %"))
    elif not reliability.calibrated:
        parts.append("What is missed is not known: the run is not calibrated.")
    return " ".join(parts)


def expected_wrong(findings: Sequence[Finding]) -> float:
    """False findings to expect, of those whose error rate is known.

    The error rate is of all findings of a kind, and of one owner's claims, that are at least as strong; so the largest
    of each is that of all of them.
    """
    rates: dict[tuple[str | None, ...], list[float]] = {}
    for one in findings:
        if one.fdr is not None:
            key = (one.kind, one.owner) if one.kind == "feature" else (one.kind, one.base, one.source)
            rates.setdefault(key, []).append(one.fdr)
    return sum(len(some) * max(some) for some in rates.values())
