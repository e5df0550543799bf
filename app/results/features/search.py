"""Finds features by text, the most relevant first: in what they fire on, promote and suppress, and in labels.

Words are cut and looked up as `trainer/results/search.py` stores them; a search reads a few ranges of one sorted table.
"""

import functools
import re
import threading
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from app.results.connection import Results
from app.settings import REPOSITORY

WORDS = REPOSITORY / "trainer" / "results" / "words.sql"
"""How text is cut into words; a file here, not a module."""
FIELDS = {"contexts": ("peak", "context"), "peaks": ("peak",), "promoted": ("promoted", "suppressed")}
"""Fields of `search_word` by where to look; labels are elsewhere, and everywhere is all."""
MOST_WORDS = 12
"""Words of a search that count."""
SHORTEST_STEM = 3
"""Letters from which on longer words with the same beginning are found as well."""
BEGINNING = 0.35
"""Weight of a word that only begins as the one typed does, of that of the word itself."""
LABEL_WEIGHT, INDEX_WEIGHT = 10.0, 1000.0
"""Relevance of a label that has every word, and of the index typed."""

_ENDINGS = re.compile(
    r"(?<=[^\W\d_]{4})(?:ations?|ions?|ings?|ments?|ers?|als?|ies|ed|es|en|ly|s|e|y"
    r"|ами|ями|ого|его|ому|ему|ыми|ими|ов|ев|ах|ях|ой|ый|ий|ая|ое|ые|ам|ям|ом|ем|[аеиоуыьюяй])$"
)
"""Endings of English and Russian words that leave a stem of four letters or more."""


@dataclass(frozen=True)
class SearchWord:
    """One word that is looked for."""

    word: str
    stem: str
    """Words that begin with it are found as well; empty for pairs of characters and for signs."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text has the word or one with its stem: first character and the one after the last."""
        wanted = self.stem or self.word
        same = _same_case(text)
        whole = self.word.isalnum() and not _is_unspaced(self.word)
        at = same.find(wanted)
        while at >= 0:
            end = at + len(wanted)
            while whole and end < len(same) and _in_word(same[end]):
                end += 1
            begins = not whole or at == 0 or not _in_word(same[at - 1])
            if begins and (not whole or self.stem or same[at:end] == self.word):
                yield at, end
            at = same.find(wanted, end)


@dataclass(frozen=True)
class Match:
    """Where a feature has what was searched."""

    fields: tuple[str, ...]
    """label, index, peak, promoted, suppressed or context; the most telling first."""
    promoted: tuple[str, ...]
    """Words found among the tokens that it promotes."""
    suppressed: tuple[str, ...]
    rank: int
    """Of the context that has the most of it; 0 where none has."""


@dataclass(frozen=True)
class Search:
    """A search as SQL that gives feature and relevance; a feature is found by having every word somewhere."""

    words: tuple[SearchWord, ...]
    hits: str
    """SQL with word, term, feature, field, weight and rank."""
    labelled: tuple[int, ...]
    """Features whose labels have every word."""
    number: int | None
    """The feature whose index the text is."""
    parameters: dict[str, Any]

    @property
    def sql(self) -> str:
        """SQL with feature and relevance."""
        best = f"select word, feature, field, max(weight) as weight from ({self.hits}) group by word, feature, field"  # noqa: S608 - our own text
        by_word = f"select word, feature, sum(weight) as weight from ({best}) group by word, feature"  # noqa: S608
        every_word = f"having count(*) = {len(self.words)}" if len(self.words) > 1 else ""
        parts = [f"select feature, sum(weight) as weight from ({by_word}) group by feature {every_word}"]  # noqa: S608
        if self.labelled:
            parts.append(f"select unnest($labelled::integer[]) as feature, {LABEL_WEIGHT} as weight")
        if self.number is not None:
            parts.append(f"select $number::integer as feature, {INDEX_WEIGHT} as weight")
        together = " union all ".join(parts)
        return f"select feature, sum(weight) as relevance from ({together}) group by feature"  # noqa: S608

    @property
    def all_parameters(self) -> dict[str, Any]:
        """Parameters of `sql`."""
        labelled = {"labelled": list(self.labelled)} if self.labelled else {}
        number = {} if self.number is None else {"number": self.number}
        return {**self.parameters, **labelled, **number}


def search_for(results: Results, text: str, within: str, labelled: Collection[int]) -> Search:
    """The search for a text; `labelled` are the features whose labels have it, `within` is where to look."""
    words = search_words(text)
    parameters: dict[str, Any] = {}
    parts = []
    if within != "labels":
        for index, word in enumerate(words):
            parts.append(_hits_of(index, word, within))
            parameters |= {f"word_{index}": word.word}
            if word.stem:
                parameters |= {f"stem_{index}": word.stem}
    nothing = "select 0 as word, '' as term, 0 as feature, '' as field, 0 as weight, 0 as rank where false"
    number = None if within else _index_in(text, results.features)
    return Search(words, " union all ".join(parts) or nothing, tuple(sorted(labelled)), number, parameters)


def matches_of(results: Results, search: Search, features: Collection[int]) -> dict[int, Match]:
    """Where each of these features, which the search found, has the text."""
    rows = results.rows(
        f"select feature, field, term, weight, rank from ({search.hits}) "  # noqa: S608 - our own text
        "where feature in (select unnest($some::integer[])) order by weight desc",
        **search.parameters,
        some=list(features),
    )
    gathered: dict[int, list[tuple[str, str, float, int | None]]] = {feature: [] for feature in features}
    for feature, *hit in rows:
        gathered[feature].append((hit[0], hit[1], hit[2], hit[3]))
    return {feature: _match(feature, hits, search) for feature, hits in gathered.items()}


def _match(feature: int, hits: list[tuple[str, str, float, int | None]], search: Search) -> Match:
    fields = dict.fromkeys(field for field, *_ in hits)
    first = ["index"] * (feature == search.number) + ["label"] * (feature in search.labelled)
    terms = {
        side: tuple(dict.fromkeys(term for field, term, *_ in hits if field == side))
        for side in ("promoted", "suppressed")
    }
    by_rank: dict[int, float] = {}
    for _, _, weight, rank in hits:
        if rank is not None:
            by_rank[rank] = by_rank.get(rank, 0.0) + weight
    rank = max(by_rank, key=lambda one: (by_rank[one], -one), default=0)
    return Match((*first, *fields), terms["promoted"], terms["suppressed"], rank)


@functools.lru_cache(maxsize=1024)
def search_words(text: str) -> tuple[SearchWord, ...]:
    """The words of a text, MOST_WORDS at most, each once."""
    with _cutting:
        row = _cutter().execute("select words_or_sign($1, false)", [text]).fetchone()
    cut = dict.fromkeys(row[0] if row else ())
    return tuple(SearchWord(word, _stem(word)) for word in list(cut)[:MOST_WORDS])


_cutting = threading.Lock()


@functools.cache
def _cutter() -> duckdb.DuckDBPyConnection:
    """A database of its own to cut what people type, by the macros that cut the texts."""
    connection = duckdb.connect(":memory:", config={"threads": 1})
    connection.execute(WORDS.read_text(encoding="utf-8"))
    return connection


def _hits_of(index: int, word: SearchWord, within: str) -> str:
    fields = ", ".join(f"'{field}'" for field in FIELDS.get(within, ()))
    where = f"and field in ({fields})" if fields else ""
    columns = f"select {index} as word, word as term, feature, field"
    if not word.stem:
        return f"{columns}, weight, rank from search_word where word = $word_{index} {where}"
    weight = f"weight * case when word = $word_{index} then 1 else {BEGINNING} end as weight"
    inside = f"word >= $stem_{index} and word < $stem_{index} || chr(1114111)"
    return f"{columns}, {weight}, rank from search_word where {inside} {where}"


def _stem(word: str) -> str:
    if len(word) < SHORTEST_STEM or not word.isalnum() or _is_unspaced(word):
        return ""
    return _ENDINGS.sub("", word)


def _index_in(text: str, features: int) -> int | None:
    """The index that the text is, such as `123` or `#123`, if there is such a feature."""
    digits = text.strip().removeprefix("#")
    known = digits.isascii() and digits.isdigit() and int(digits) < features
    return int(digits) if known else None


def _is_unspaced(word: str) -> bool:
    """Whether it is in a script without spaces between words."""
    return any(unicodedata.name(word[0], "").startswith(script) for script in UNSPACED)


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""How the names of characters of such scripts begin."""


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _same_case(text: str) -> str:
    """The text in lower case and without accents of Latin letters, character by character."""
    return text.lower() if text.isascii() else "".join(map(_plain, text))


@functools.lru_cache(maxsize=2**14)
def _plain(character: str) -> str:
    lower = character.lower()
    bare = unicodedata.normalize("NFD", lower)[0]
    return bare if bare.isascii() else lower[0]
