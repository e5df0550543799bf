"""Cuts a window of text into rows, with every source's tokens, the activation and the shade that shows it.

Activations exist at rows only: byte positions at which a token ends in every source. A row holds, per source, the
tokens since the row before; the last of them is the one that was read and carries the value.
"""

import math
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

TAIL = sys.maxsize
"""Stands for the end of tokens after the last row."""

UNFINISHED = "‥"
"""Stands for a token that is the beginning or the middle of a character."""

LEVELS = 10
"""Steps of the colour scale; 0 is no activation."""

WHITESPACE = {"\n": "↵", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□"}
KEPT_FORMATS = {"\u200d", "\u200c", "\ufe0f"}
"""Invisible characters that emoji and scripts need."""


class Token(NamedTuple):
    """One token as it is shown."""

    text: str
    look: str
    """own: it ends where the row ends; part: earlier in the row; special: it stands for no text."""


class Row(NamedTuple):
    """The tokens that share a row, per source."""

    byte_end: int
    """Where the row ends in the sequence's text; -1 for tokens that stand for no text."""
    activation: float | None
    """Unscaled; None where the feature did not fire, or where nothing was kept."""
    level: int
    """Step of the colour scale, 0 to 10."""
    peak: bool
    known: bool
    """Whether the results say what the feature did here."""
    tokens: tuple[tuple[Token, ...], ...]
    """Per source, in order."""


class SourceTokens(NamedTuple):
    """The tokens of one source over some stretch of text, in order."""

    texts: Sequence[str]
    ends: Sequence[int]
    """Byte of the sequence's text where each token ends; -1 for tokens that stand for no text."""

    @classmethod
    def from_tokens(cls, tokens: Sequence[dict[str, Any]]) -> "SourceTokens":
        """From a list of `text` and `byte_end`, as results files have them."""
        return cls([token["text"] for token in tokens], [token["byte_end"] for token in tokens])


def token_rows(
    lines: Sequence[SourceTokens],
    activations: dict[int, float],
    *,
    scale: float,
    peak: int | None,
    text: bytes,
    start: int = 0,
    known: Sequence[tuple[int, int]] | None = None,
) -> list[Row]:
    """Cut the tokens of a window, a sequence per source, into rows.

    `scale` is the activation that is drawn strongest; `text` the window's text, which begins at byte `start`
    of the sequence; `known` the stretches of bytes for which activations were kept, all when None.
    """
    shared = set.intersection(*(set(source_tokens.ends) for source_tokens in lines)) - {-1}
    columns = [_column(source_tokens, shared, text, start) for source_tokens in lines]
    cells = [column.cells for column in columns]
    special = {end for column in columns for end in column.specials}
    rows = _specials(columns, start) if start in special else []
    ends = sorted(shared)
    for end, tokens in zip(ends, zip(*(map(each.__getitem__, ends) for each in cells), strict=True), strict=True):
        activation = activations.get(end)
        level = level_of(activation, scale) if activation else 0
        seen = known is None or any(low < end <= high for low, high in known)
        rows.append(Row(end, activation, level, end == peak, seen, tokens))
        if end in special and end != start:
            rows += _specials(columns, end)
    if any(TAIL in each for each in cells):
        rows.append(Row(-1, None, 0, False, known is None, tuple([each.get(TAIL, ()) for each in cells])))
    return rows


def _specials(columns: Sequence["_Column"], end: int) -> list[Row]:
    """The row of tokens without text after byte `end`."""
    return [Row(-1, None, 0, False, True, tuple([column.specials.get(end, ()) for column in columns]))]


class _Column(NamedTuple):
    """The tokens of one source by the row they belong to."""

    cells: dict[int, tuple[Token, ...]]
    """By the end of the row; TAIL for tokens after the last one."""
    specials: dict[int, tuple[Token, ...]]
    """Tokens that stand for no text, by the end of the row before them."""


def _column(source_tokens: SourceTokens, shared: set[int], text: bytes, start: int) -> _Column:
    cells: dict[int, tuple[Token, ...]] = {}
    specials: dict[int, tuple[Token, ...]] = {}
    cell: tuple[Token, ...] = ()
    last = start
    for shown, end in zip(source_tokens.texts, source_tokens.ends, strict=True):
        if end in shared:
            own = cell_of(shown if "\ufffd" not in shown else _whole(text, end - start))
            cells[end] = cells.get(end, ()) + cell + own if cell or end in cells else own
            cell, last = (), end
        elif end < 0:
            specials[last] = (*specials.get(last, ()), token_of(shown, "special"))
        else:
            cell += (token_of(shown if "\ufffd" not in shown else _whole(text, end - start), "part"),)
    if cell:
        cells[TAIL] = cell
    return _Column(cells, specials)


def level_of(activation: float | None, scale: float) -> int:
    """Step of an activation on the colour scale: 0 for none, 1 to 10 in equal steps up to `scale`."""
    if not activation or not math.isfinite(activation) or not math.isfinite(scale) or activation <= 0 or scale <= 0:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * activation / scale - 1e-6)))


@lru_cache(maxsize=2**16)
def token_of(text: str, look: str) -> Token:
    """A token as it is shown; most tokens of a page were seen before."""
    return Token(visible(text), look)


@lru_cache(maxsize=2**16)
def cell_of(text: str) -> tuple[Token, ...]:
    """What a source shows in a row that is one token of its; most rows are."""
    return (token_of(text, "own"),)


def visible(text: str) -> str:
    """Text in which nothing is invisible: odd whitespace, control and direction characters get a sign."""
    if text.isascii() and text.isprintable():
        return text if not text.isspace() or len(text) == 1 else "·" * len(text)
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in WHITESPACE:
        return WHITESPACE[character]
    if unicodedata.category(character) in ("Cc", "Cf") and character not in KEPT_FORMATS:
        return f"⟨{ord(character):02X}⟩"
    return character


def _whole(text: bytes, end: int) -> str:
    """What a token shows that is part of a character: the character if it completes it, else a sign."""
    if end < len(text) and text[end] & 0xC0 == 0x80:
        return UNFINISHED
    first = end - 1
    while first > 0 and text[first] & 0xC0 == 0x80:
        first -= 1
    return text[max(first, 0) : end].decode("utf-8", "replace")
