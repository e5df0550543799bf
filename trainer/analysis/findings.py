"""Puts what a run reports into one list, whatever method found it: features, and kinds of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t

from trainer.analysis.behaviour.divergence_ratio import TAIL
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.behaviour.themes import ALIKE, Theme, expected_tokens
from trainer.analysis.behaviour.windows import Candidate
from trainer.analysis.claims.claims import JudgedClaims
from trainer.analysis.claims.margin import margins
from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.per_feature.firings import RowMetadata, SequencePartition
from trainer.analysis.rows.codes import CodeSpool
from trainer.recipe.measuring import VerdictRecipe

NAMES = 8
"""Further properties told of a theme."""
MEMBERS = 8
"""Features told of a theme."""
PASSAGES = 4
"""Passages that show a theme, each of another group of documents."""
PEAKS, TOP = 3, 30
"""Tokens in the title of a feature, of so many of its strongest firings."""
WORDINGS = {
    "word": "text with “{}”",
    "after": "what follows “{}”",
    "corpus": "the corpus part {}",
    "language": "text in {}",
}
"""Titles by kind of candidate; a place says itself what it is."""


@dataclass
class Findings:
    """Rows of the tables `finding`, `finding_member` and `passage`, without their ranks."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    members: list[list[dict[str, Any]]] = field(default_factory=list)
    passages: list[list[dict[str, Any]]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(
        self, margin: float, row: dict[str, Any], members: list[dict[str, Any]], passages: list[dict[str, Any]]
    ) -> None:
        """Add a finding."""
        self.margins.append(margin)
        self.rows.append(row)
        self.members.append(members)
        self.passages.append(passages)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by table, ranked by margin."""
        tables: dict[str, list[dict[str, Any]]] = {"finding": [], "finding_member": [], "passage": []}
        for rank, at in enumerate(np.argsort(-np.array(self.margins), kind="stable").tolist()):
            tables["finding"].append({"finding": rank, **self.rows[at]})
            tables["finding_member"] += [{"finding": rank, "passage": None, **member} for member in self.members[at]]
            for passage in self.passages[at]:
                number = len(tables["passage"])
                tables["passage"].append({"passage": number, **passage})
                member = {"finding": rank, "feature": None, "passage": number, "share": 1.0}
                tables["finding_member"].append(member)
        return tables


NO_PAIR: dict[str, Any] = {
    "property": None,
    "subject": None,
    "base": None,
    "source": None,
    "names": [],
    "base_expects": [],
    "source_expects": [],
    "surprise_gain": None,
}


@dataclass(frozen=True)
class Reported:
    """What findings are made of."""

    judged: JudgedClaims
    owner: Sequence[str]
    """Of every feature."""
    behaviour: Sequence[PairBehaviour]
    metadata: RowMetadata
    codes: CodeSpool
    sources: Sequence[str]
    """Names of the sources of the results."""
    recipe: VerdictRecipe


def findings(reported: Reported) -> Findings:
    """Everything that a run reports."""
    found = Findings()
    _add_features(found, reported)
    for pair in reported.behaviour:
        for theme in pair.themes:
            _add_theme(found, theme, pair, reported)
    return found


def _add_features(found: Findings, reported: Reported) -> None:
    judged, owner = reported.judged, reported.owner
    stats, margin = judged.stats, margins(judged.stats, reported.recipe)
    trainings = np.nan_to_num(stats.other_runs).astype(int)
    again = np.nan_to_num(stats.found_again * trainings).round().astype(int)
    for feature in np.flatnonzero([verdict == SUPPORTED for verdict in judged.judgement.verdict]).tolist():
        row = {
            "kind": "feature",
            "title": feature_title(feature, reported),
            "owner": owner[feature],
            "feature": feature,
            "measure": "probe_ratio",
            "effect": float(stats.ratio.value[feature]),
            "low": float(stats.ratio.low[feature]),
            "high": float(stats.ratio.high[feature]),
            "fdr": _known(stats.fdr[feature]),
            "found_in": int(again[feature]) + 1,
            "looked_in": int(trainings[feature]) + 1,
            "documents": int(np.nan_to_num(stats.documents[feature])),
            **NO_PAIR,
        }
        found.add(float(np.nan_to_num(margin[feature])), row, [{"feature": feature, "share": 1.0}], [])


def feature_title(feature: int, reported: Reported) -> str:
    """The tokens at which a feature fires most, in its owner's tokens; its number without texts."""
    texts, row_order = reported.metadata.texts, reported.metadata.row_order
    owner, sources = reported.owner[feature], reported.sources[: texts.sources if texts else 0]
    firings = reported.codes.read(feature, feature + 1)
    if texts is None or row_order is None or not len(firings.row) or owner not in sources:
        return f"feature {feature}"
    row = firings.row[np.argsort(-firings.value, kind="stable")[:TOP]]
    at = row if row_order.position_of_row is None else row_order.position_of_row[row]
    end = row_order.byte_end[at].astype(np.int64)
    tokens = texts.tokens(row_order.sequence[at].astype(np.int64), end - 1, end).to_pylist()
    last = [one[sources.index(owner)][-1]["text"] for one in tokens if one[sources.index(owner)]]
    names, count = np.unique(np.array(last, object).astype(str), return_counts=True)
    most = names[np.argsort(-count, kind="stable")[:PEAKS]]
    return f"fires at {', '.join(f'“{name}”' for name in most.tolist())}" if len(most) else f"feature {feature}"


def _add_theme(found: Findings, theme: Theme, pair: PairBehaviour, reported: Reported) -> None:
    spans, limit, sources = pair.spans, reported.recipe.divergence_ratio, reported.sources
    window = pair.windows.window_of_span()
    among = theme.among[window]
    inside, group = np.isin(window, theme.windows)[among], pair.windows.units.group[window][among]
    gain, low, high = surprise_gain(spans, among, inside, group)
    expects = expected_tokens(spans, pair.windows, theme)
    row = {
        "kind": "passage",
        "title": theme_title(theme.name),
        "owner": sources[spans.source] if low > 0 else sources[spans.base] if high < 0 else None,
        "base": spans.base,
        "source": spans.source,
        "feature": None,
        "property": theme.name.kind,
        "subject": theme.name.name,
        "measure": "divergence_ratio",
        "effect": theme.ratio,
        "low": theme.low,
        "high": theme.high,
        "fdr": theme_fdr(theme.low, [one.low for one in pair.themes], [one.low for one in pair.in_null]),
        "found_in": theme.halves,
        "looked_in": 2,
        "documents": theme.groups,
        "names": other_names(theme),
        "base_expects": expects[0],
        "source_expects": expects[1],
        "surprise_gain": gain,
    }
    found.add(1 - limit / theme.low, row, _members(pair, theme, limit), _passages(pair, theme, reported.metadata))


def theme_title(name: Candidate) -> str:
    """What a theme is, in words."""
    return WORDINGS.get(name.kind, "{}").format(name.name)


def other_names(theme: Theme) -> list[str]:
    """Further properties of a theme, in short: a word stands for itself and for what follows it."""
    names = [one.name if one.kind in ("word", "after") else theme_title(one) for one in theme.others]
    own = {theme.name.name, theme_title(theme.name)}
    return [name for name in dict.fromkeys(names) if name not in own][:NAMES]


def theme_fdr(low: float, lows: Sequence[float], null: Sequence[float]) -> float:
    """Themes of the null with a lower bound at least as large, over those of the run; at most 1."""
    return min(sum(one >= low for one in null) / max(sum(one >= low for one in lows), 1), 1.0)


def surprise_gain(
    spans: SpanTable, among: np.ndarray, inside: np.ndarray, group: np.ndarray
) -> tuple[float, float, float]:
    """By how much better the source expects some spans than the base, less the same of the others, nats per byte.

    With its 90 % interval over groups of documents. `among`, bool [N], says which spans are compared at all, `inside`
    and `group` are of those.
    """
    better = (spans.surprise[0] - spans.surprise[1])[among]
    size = (spans.byte_end - spans.byte_start)[among].astype(float)
    parts = [_mean_per_byte(better[kept], size[kept], group[kept]) for kept in (inside, ~inside)]
    gain = parts[0][0] - parts[1][0]
    width = float(t.ppf(1 - TAIL, max(len(np.unique(group[inside])) - 1, 1)) * np.sqrt(parts[0][1] + parts[1][1]))
    return gain, gain - width, gain + width


def _mean_per_byte(better: np.ndarray, size: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """A mean per byte and its variance over groups."""
    if not len(size):
        return 0.0, 0.0
    index = np.unique(group, return_inverse=True)[1]
    mean = better.sum() / size.sum()
    influence = np.bincount(index, better - mean * size) / size.sum()
    count = len(influence)
    return float(mean), float((influence**2).sum() * count / max(count - 1, 1))


def _members(pair: PairBehaviour, theme: Theme, limit: float) -> list[dict[str, Any]]:
    """Features with a ratio surely above the limit, most of whose groups are of a theme, the strongest first."""
    groups = set(pair.windows.units.group[theme.windows].tolist())
    found: list[dict[str, Any]] = []
    for feature in np.argsort(-np.nan_to_num(pair.features.ratios.low), kind="stable").tolist():
        if len(found) == MEMBERS or not pair.features.ratios.low[feature] >= limit:
            break
        own = pair.features.groups[feature]
        share = len(groups & own) / max(len(own), 1)
        if share >= ALIKE:
            found.append({"feature": feature, "share": share})
    return found


def _passages(pair: PairBehaviour, theme: Theme, metadata: RowMetadata) -> list[dict[str, Any]]:
    """The passages of a theme where the models are farthest apart, and farther than with noise, of different groups."""
    windows = pair.windows
    size = windows.stop - windows.first
    order = theme.windows[np.argsort(-(windows.units.apart / size)[theme.windows], kind="stable")]
    farther = windows.units.apart > windows.units.reference
    groups, chosen = set[int](), list[int]()
    for window in order.tolist():
        if windows.units.group[window] not in groups and len(chosen) < PASSAGES and (farther[window] or not chosen):
            groups.add(windows.units.group[window])
            chosen.append(window)
    return [_passage(pair, window, metadata) for window in chosen]


def _passage(pair: PairBehaviour, window: int, metadata: RowMetadata) -> dict[str, Any]:
    """A window with its neighbours in the same sequence."""
    windows, spans, texts = pair.windows, pair.spans, metadata.texts
    assert texts is not None, "behaviour is compared on texts"
    sequence = int(spans.sequence[windows.first[window]])
    near = [one for one in (window - 1, window, window + 1) if 0 <= one < len(windows.first)]
    near = [one for one in near if spans.sequence[windows.first[one]] == sequence]
    some = np.arange(windows.first[near[0]], windows.stop[near[-1]])
    start, end = int(spans.byte_start[some[0]]), int(spans.byte_end[some[-1]])
    data = texts.data[texts.text_start[sequence] : texts.text_start[sequence + 1]].tobytes()
    while start and data[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    own = slice(windows.first[window], windows.stop[window])
    bounds = (np.array([sequence]), np.array([start]), np.array([end]))
    return {
        "corpus": texts.corpora[texts.corpus[sequence]],
        "language": _language(metadata.partitions, sequence),
        "sequence": sequence,
        "apart": float(spans.apart[own].mean()),
        "reference": float(spans.reference[own].mean()),
        "byte_start": start,
        "text": data[start:end].decode("utf-8", "replace"),
        "tokens": texts.tokens(*bounds).to_pylist()[0],
        "places": [
            {
                "byte_end": int(spans.byte_end[at]),
                "divergence": float(spans.apart[at]),
                "base_surprise": float(spans.surprise[0][at]),
                "source_surprise": float(spans.surprise[1][at]),
            }
            for at in some.tolist()
        ],
    }


def _language(partitions: Sequence[SequencePartition], sequence: int) -> str:
    named: Mapping[str, str] = {one.kind: one.names[one.part[sequence]] for one in partitions}
    return named.get("language", "und")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
