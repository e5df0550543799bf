"""Tokens: a window of text as rows, each with the tokens of every source and the feature's activation.

Activations exist at rows only: places where a token ends in every source. A row holds, per source, the
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
    """Where the row ends in the context's text; -1 for tokens that stand for no text."""
    activation: float | None
    """Unscaled; None where the feature did not fire, or where nothing was kept."""
    level: int
    """Place on the colour scale, 0 to 10."""
    peak: bool
    known: bool
    """Whether the results say what the feature did here."""
    tokens: tuple[tuple[Token, ...], ...]
    """Per source, in order."""


def rows_of(
    tokens: Sequence[Sequence[dict[str, Any]]],
    activations: dict[int, float],
    *,
    scale: float,
    peak: int | None,
    text: bytes,
    start: int = 0,
    known: Sequence[tuple[int, int]] | None = None,
) -> list[Row]:
    """Cut the tokens of a window, per source, into rows.

    `scale` is the activation that is drawn strongest; `text` the window's text, which begins at byte `start`
    of the context; `known` the stretches of bytes for which activations were kept, all when None.
    """
    shared = set.intersection(*({token["byte_end"] for token in sequence} for sequence in tokens)) - {-1}
    columns = [_columns(sequence, shared, text, start) for sequence in tokens]
    rows = _specials(columns, start)
    special = {end for column in columns for end in column.specials}
    for end in sorted(shared):
        activation = activations.get(end)
        level = level_of(activation, scale) if activation else 0
        seen = known is None or any(low < end <= high for low, high in known)
        rows.append(Row(end, activation, level, end == peak, seen, tuple([tuple(each.cells[end]) for each in columns])))
        if end in special and end != start:
            rows += _specials(columns, end)
    if any(TAIL in column.cells for column in columns):
        rows.append(
            Row(-1, None, 0, False, known is None, tuple([tuple(each.cells.get(TAIL, ())) for each in columns]))
        )
    return rows


def _specials(columns: Sequence["_Column"], end: int) -> list[Row]:
    """The row of tokens without text that follow a place, if there are any."""
    if not any(end in column.specials for column in columns):
        return []
    return [Row(-1, None, 0, False, True, tuple(tuple(column.specials.get(end, ())) for column in columns))]


class _Column(NamedTuple):
    """The tokens of one source by the row they belong to."""

    cells: dict[int, list[Token]]
    """By the end of the row; TAIL for tokens after the last one."""
    specials: dict[int, list[Token]]
    """Tokens that stand for no text, by the end of the row before them."""


def _columns(sequence: Sequence[dict[str, Any]], shared: set[int], text: bytes, start: int) -> _Column:
    column, cell, last = _Column({}, {}), [], start
    for token in sequence:
        end, shown = token["byte_end"], token["text"]
        if end < 0:
            column.specials.setdefault(last, []).append(token_of(shown, "special"))
            continue
        if "\ufffd" in shown:
            shown = _whole(text, end - start)
        if end not in shared:
            cell.append(token_of(shown, "part"))
            continue
        cell.append(token_of(shown, "own"))
        column.cells.setdefault(end, []).extend(cell)
        cell, last = [], end
    if cell:
        column.cells[TAIL] = cell
    return column


def level_of(activation: float | None, scale: float) -> int:
    """Place of an activation on the colour scale: 0 for none, 1 to 10 in equal steps up to `scale`."""
    if not activation or activation <= 0 or scale <= 0:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * activation / scale - 1e-6)))


@lru_cache(maxsize=2**16)
def token_of(text: str, look: str) -> Token:
    """A token as it is shown; most tokens of a page were seen before."""
    return Token(visible(text), look)


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
