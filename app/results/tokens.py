"""Tokens: a window of text as rows, each with the tokens of every source and the feature's activation.

Activations exist at rows only: places where a token ends in every source. A row holds, per source, the
tokens since the row before; the last of them is the one that was read and carries the value.
"""

import math
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = 10
"""Steps of the colour scale; 0 is no activation."""

WHITESPACE = {"\n": "↵", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□"}
KEPT_FORMATS = {"\u200d", "\u200c", "\ufe0f"}
"""Invisible characters that emoji and scripts need."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is shown."""

    text: str
    look: str
    """own: it ends where the row ends; part: earlier in the row; special: it stands for no text."""


@dataclass(frozen=True, slots=True)
class Row:
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
    ends = _shared_ends(tokens)
    cells: list[list[list[Token]]] = [[[] for _ in tokens] for _ in range(len(ends) + 1)]
    specials: dict[int, list[list[Token]]] = {}
    for source, sequence in enumerate(tokens):
        before = start
        for token in sequence:
            end = token["byte_end"]
            if end < 0:
                place = bisect_left(ends, before + 1)
                cell = specials.setdefault(place, [[] for _ in tokens])
                cell[source].append(Token(visible(token["text"]), "special"))
                continue
            place = bisect_left(ends, end)
            look = "own" if place < len(ends) and ends[place] == end else "part"
            cells[place][source].append(Token(visible(_shown(token["text"], text, end - start)), look))
            before = end
    rows: list[Row] = []
    for place, cell in enumerate(cells):
        if place in specials:
            rows.append(Row(-1, None, 0, False, True, _frozen(specials[place])))
        if not any(cell):
            continue
        end = ends[place] if place < len(ends) else -1
        activation = activations.get(end)
        seen = known is None or any(low < end <= high for low, high in known)
        rows.append(Row(end, activation, level_of(activation, scale), 0 <= end == peak, seen, _frozen(cell)))
    return rows


def _frozen(cell: list[list[Token]]) -> tuple[tuple[Token, ...], ...]:
    return tuple(tuple(tokens) for tokens in cell)


def _shared_ends(tokens: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    """Byte ends that every source has, in order."""
    each = [{token["byte_end"] for token in sequence} for sequence in tokens]
    return sorted(set.intersection(*each) - {-1}) if each else []


def level_of(activation: float | None, scale: float) -> int:
    """Place of an activation on the colour scale: 0 for none, 1 to 10 in equal steps up to `scale`."""
    if not activation or activation <= 0 or scale <= 0:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * activation / scale - 1e-6)))


def visible(text: str) -> str:
    """Text in which nothing is invisible: odd whitespace, control and direction characters get a sign."""
    if text.isascii() and text.isprintable():
        return text if not text.isspace() else "·" * len(text)
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in WHITESPACE:
        return WHITESPACE[character]
    if unicodedata.category(character) in ("Cc", "Cf") and character not in KEPT_FORMATS:
        return f"⟨{ord(character):02X}⟩"
    return character


def _shown(token: str, text: bytes, end: int) -> str:
    """A token's text; one that completes a character of several tokens shows the character, earlier ones a sign."""
    if "\ufffd" not in token:
        return token
    if end < len(text) and text[end] & 0xC0 == 0x80:
        return "‥"  # the character goes on in the next token
    first = end - 1
    while first > 0 and text[first] & 0xC0 == 0x80:
        first -= 1
    return text[max(first, 0) : end].decode("utf-8", "replace")
