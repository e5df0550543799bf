"""Compares what two runs report: which findings of either hold in the other.

Runs of one comparison that differ in their seed should report the same. Features are matched by their strongest
firings: the same places in the same text. Kinds of text are matched by their words.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from app.errors import BadQuery
from app.results.connection import Results
from app.results.features.tokens import visible
from app.results.runs.findings import Finding, findings_of
from app.results.runs.summary import recipe_of

SAME = 0.5
"""Share of the strongest firings, of the feature with fewer, that two features must have in common to be one."""


@dataclass(frozen=True)
class FeatureMatch:
    """The feature of the other run that fires most on the same places."""

    feature: int
    owner: str
    verdict: str
    in_common: float
    """Share of the strongest firings."""
    divergences: dict[tuple[str, str], float]
    """Lower bounds of how much farther apart predictions are where it fires, by pair of models."""


@dataclass(frozen=True)
class FindingMatch:
    """A finding, and where it is in another run."""

    finding: Finding
    again: int | None
    """The finding of the other run that tells the same; None for none."""
    match: FeatureMatch | None
    """For a finding about a feature, the same feature of the other run, reported or not; None without one."""
    holds: bool
    """Whether what it says holds in the other run: it is reported there, or the same feature has what is claimed.

    A list tells each text once, by another feature in another training.
    """


@dataclass(frozen=True)
class RunComparison:
    """Findings of two runs."""

    run: str
    other: str
    forth: tuple[FindingMatch, ...]
    """Findings of the run, looked for in the other."""
    back: tuple[FindingMatch, ...]
    """Findings of the other, looked for in the run."""


def compare_runs(one: Results, other: Results, *, first: int | None = None) -> RunComparison:
    """Look for the first findings of either run among all of the other. Raises BadQuery for runs of other models."""
    models, others = ({(source.name, source.model) for source in each.sources} for each in (one, other))
    if models != others:
        raise BadQuery(
            f"{one.run} and {other.run} do not compare the same models.",
            remedy="Choose two runs that stand under one heading on the home page.",
        )
    mine, theirs = findings_of(one).findings, findings_of(other).findings
    return RunComparison(
        one.run,
        other.run,
        tuple(_matches(mine[:first], one, theirs, other)),
        tuple(_matches(theirs[:first], other, mine, one)),
    )


def found_again(matches: Sequence[FindingMatch]) -> int:
    """How many findings hold in the other run, too."""
    return sum(match.holds for match in matches)


def in_words(comparison: RunComparison) -> list[str]:
    """The comparison as lines of text."""
    lines = []
    sides = ((comparison.forth, comparison.run, comparison.other), (comparison.back, comparison.other, comparison.run))
    for matches, here, there in sides:
        lines.append(f"{found_again(matches)} of {len(matches)} findings of {here} hold in {there}, too")
        for match in matches:
            one = match.finding
            unreported = "holds" if match.holds else "does not hold" if match.match else "not found"
            again = unreported if match.again is None else f"finding {match.again + 1}"
            same = f", feature {match.match.feature} there" if match.match else ""
            effect = f"{one.effect:.2f} [{one.low:.2f}, {one.high:.2f}]"
            lines.append(f"  {one.finding + 1:>3}  {visible(one.title)} ({effect}): {again}{same}")
    return lines


def _matches(
    findings: Sequence[Finding], one: Results, others: Sequence[Finding], other: Results
) -> Iterable[FindingMatch]:
    features = sorted({finding.feature for finding in findings if finding.feature is not None})
    same, limit = same_features(one, other, features), divergence_limit(other)
    for finding in findings:
        if finding.feature is None:
            wanted = finding.property, finding.subject
            exact = sorted(others, key=lambda each: (each.property, each.subject) != wanted)
            again = next((candidate.finding for candidate in exact if _same_text(finding, candidate)), None)
            yield FindingMatch(finding, again, None, again is not None)
            continue
        owned = [match for match in same[finding.feature] if finding.kind != "feature" or match.owner == finding.owner]
        numbers = {match.feature for match in owned}
        about = (each for each in others if (each.base, each.source) == (finding.base, finding.source))
        again = next((each.finding for each in about if numbers & {each.feature, *each.features}), None)
        holds = again is not None or any(_holds(finding, match, limit) for match in owned)
        nearest = next(iter([*owned, *same[finding.feature]]), None)
        yield FindingMatch(finding, again, nearest, holds)


def _holds(finding: Finding, match: FeatureMatch, limit: float) -> bool:
    """Whether the same feature of another run has what a finding says."""
    if finding.kind == "feature":
        return match.verdict == "supported"
    return match.divergences.get((finding.base or "", finding.source or ""), -math.inf) >= limit


def divergence_limit(results: Results) -> float:
    """The lower bound that a divergence ratio needs to be reported; infinite where the recipe has none."""
    analysis = recipe_of(results).get("analysis")
    verdict = analysis.get("verdict") if isinstance(analysis, dict) else None
    limit = verdict.get("divergence_ratio") if isinstance(verdict, dict) else None
    return float(limit) if isinstance(limit, int | float) else math.inf


def _same_text(finding: Finding, other: Finding) -> bool:
    """Whether two findings are about one kind of text: the word of either is told of the other."""
    if other.kind != "passage" or {finding.base, finding.source} != {other.base, other.source}:
        return False
    if finding.property == other.property and finding.subject == other.subject:
        return True
    words = ("word", "after")
    if finding.property in words and other.property in words and finding.subject == other.subject:
        return True
    return finding.subject in other.names or other.subject in finding.names


def same_features(one: Results, other: Results, features: Sequence[int]) -> dict[int, list[FeatureMatch]]:
    """For some features of a run those of another with at least SAME of the strongest firings, the most first."""
    found: dict[int, list[FeatureMatch]] = {feature: [] for feature in features}
    if not features:
        return found
    place = "hash(\"text\" || ' ' || (peak_byte_end - byte_start)::varchar)"
    places = one.rows(
        f"select distinct feature, {place} from firing where bucket = 'top' and list_contains($features, feature)",  # noqa: S608
        features=list(features),
    )
    numbers, keys = [feature for feature, _ in places], [key for _, key in places]
    for feature, match, owner, verdict, share in other.rows(
        f"""
        with wanted as (select unnest($numbers::integer[]) as wanted, unnest($keys::ubigint[]) as key),
        sizes as (select wanted, count(*) as size from wanted group by wanted),
        fired as (select distinct feature, {place} as key from firing where bucket = 'top'),
        common as (
            select wanted, feature, count(*) as count from wanted join fired using (key) group by wanted, feature
        ),
        own as (select feature, count(*) as size from fired where feature in (select feature from common) group by all)
        select wanted, common.feature, owner, verdict, count / least(sizes.size, own.size) as share
        from common join sizes using (wanted) join own on own.feature = common.feature
        join feature on feature.feature = common.feature
        where count >= $same * least(sizes.size, own.size)
        order by wanted, share desc, common.feature
        """,  # noqa: S608
        numbers=numbers,
        keys=keys,
        same=SAME,
    ):
        found[feature].append(FeatureMatch(match, owner, verdict, share, {}))
    matched = sorted({one.feature for matches in found.values() for one in matches})
    lows: dict[int, dict[tuple[str, str], float]] = {}
    names = {source.source: source.name for source in other.sources}
    for feature, base, source, low in other.rows(
        "select feature, base, source, low from feature_divergence where list_contains($matched, feature)",
        matched=matched,
    ):
        lows.setdefault(feature, {})[names.get(base, ""), names.get(source, "")] = low
    return {
        feature: [replace(one, divergences=lows.get(one.feature, {})) for one in matches]
        for feature, matches in found.items()
    }
