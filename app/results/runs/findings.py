"""Reads what a run reports: features and kinds of text, the best supported first."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from app.results.connection import Results
from app.results.features.tokens import visible
from app.results.runs.passages import PassageSpan, passage_spans


@dataclass(frozen=True)
class FindingPassage:
    """A passage that shows a finding."""

    passage: int
    corpus: str
    language: str
    sequence: int
    apart: float
    """Mean distance of the two models' predictions, nats."""
    reference: float
    """The same of the base and its noised copy."""
    cells: tuple[PassageSpan, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that a run reports; see the table `finding` for its columns."""

    finding: int
    kind: str
    """feature, passage or divergence."""
    title: str
    owner: str | None
    base: str | None
    """Names of the pair of models whose predictions differ."""
    source: str | None
    feature: int | None
    property: str | None
    """word, after, corpus, language or place; of a passage theme."""
    subject: str | None
    measure: str
    """probe_ratio or divergence_ratio."""
    effect: float
    low: float
    high: float
    fdr: float | None
    found_in: int
    looked_in: int
    documents: int
    surprise_gain: float | None
    excess: float | None
    """Of a feature that is claimed: energy over that of noise."""
    names: tuple[str, ...]
    base_expects: tuple[str, ...]
    source_expects: tuple[str, ...]
    features: tuple[int, ...]
    """Features of a passage theme; others that fire where a divergent one does."""
    passages: tuple[FindingPassage, ...]


@dataclass(frozen=True)
class BehaviourNull:
    """What the same rules report between two models, and between the first and a noised copy of it."""

    kind: str
    """passage or feature."""
    base: str
    source: str
    candidates: int
    reported: int
    in_null: int


@dataclass(frozen=True)
class FindingList:
    """All findings of a run, and the nulls of those of behaviour."""

    findings: tuple[Finding, ...]
    nulls: tuple[BehaviourNull, ...]
    """Empty where predictions were not compared."""


FIELDS = tuple(field.name for field in fields(Finding) if field.name not in ("features", "passages"))
"""Fields that are columns,"""
COLUMNS = tuple(f"{'feature' if name == 'excess' else 'f'}.{name}" for name in FIELDS)
"""all but `excess` of the table `finding`."""


def findings_of(results: Results) -> FindingList:
    """All findings of a run, in order."""
    features, passages = _members(results)
    names = [source.name for source in results.sources]
    found = []
    for row in results.rows(
        f"select {', '.join(COLUMNS)} from finding f left join feature using (feature) order by finding"  # noqa: S608
    ):
        values: dict[str, Any] = dict(zip(FIELDS, row, strict=True))
        number = values["finding"]
        values |= {side: None if values[side] is None else names[values[side]] for side in ("base", "source")}
        values |= {words: tuple(values[words]) for words in ("names", "base_expects", "source_expects")}
        members = tuple(one for one in features.get(number, ()) if one != values["feature"])
        found.append(Finding(**values, features=members, passages=tuple(passages.get(number, ()))))
    nulls = results.rows("select kind, base, source, candidates, reported, in_null from behaviour_null order by all")
    return FindingList(
        tuple(found),
        tuple(BehaviourNull(kind, names[base], names[source], *counts) for kind, base, source, *counts in nulls),
    )


def in_words(findings: Sequence[Finding]) -> list[str]:
    """One line per finding."""
    return [f"{one.finding + 1:>3}  {_in_words(one)}" for one in findings]


def _in_words(one: Finding) -> str:
    interval = f"{one.effect:.2f} [{one.low:.2f}, {one.high:.2f}]"
    rate = "error rate not known" if one.fdr is None else f"error rate {one.fdr:.2g}"
    trainings = f"found in {one.found_in} of {one.looked_in} trainings"
    if one.kind == "feature":
        told = f"the others tell {interval} of its firings"
        return f"{one.owner}: feature {one.feature}, {visible(one.title)}; {told}; {trainings}; {rate}"
    apart = f"{one.base} and {one.source} are {interval} times as far apart there as elsewhere"
    if one.kind == "divergence":
        return f"after feature {one.feature}, {visible(one.title)}: {apart}; {trainings}; {rate}"
    return f"{visible(one.title)}: {apart}; in {one.documents} groups of documents; {rate}"


def _members(results: Results) -> tuple[dict[int, list[int]], dict[int, list[FindingPassage]]]:
    """Features and passages by finding."""
    features: dict[int, list[int]] = {}
    for number, feature in results.rows(
        "select finding, feature from finding_member where feature is not null order by rowid"
    ):
        features.setdefault(number, []).append(feature)
    passages: dict[int, list[FindingPassage]] = {}
    for number, passage, corpus, language, sequence, apart, reference, *text in results.rows(
        """
        select m.finding, p.passage, p.corpus, p.language, p.sequence, p.apart, p.reference,
            p.byte_start, p."text", p.tokens, p.places
        from finding_member m join passage p using (passage) order by m.finding, p.passage
        """
    ):
        shown = FindingPassage(passage, corpus, language, sequence, apart, reference, passage_spans(*text))
        passages.setdefault(number, []).append(shown)
    return features, passages
