"""Draws tokens as HTML. A page has thousands of them, so they are joined here and not by a template.

Everything that comes from a text is escaped; what tokens show has no invisible characters (`visible`).
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from html import escape

from app.results.features.context_line import ContextLine
from app.results.features.tokens import UNFINISHED, Row, Token
from app.web.numbers import number, percent

AROUND = 18
"""Rows of a line on either side of its middle."""


class Html(str):
    """HTML that templates insert as it is: all text in it is escaped already."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def token_rows(rows: Sequence[Row], shown: Sequence[int], maximum: float) -> Html:
    """Rows of tokens, above each other for every source in `shown`; `maximum` is the feature's largest activation.

    Where nothing fired, a token that ends its row is plain text.
    """
    only = shown[0] if len(shown) == 1 else None
    parts = ['<div class="rows" dir="auto" data-rows>']
    for _, activation, level, peak, known, tokens in rows:
        cells = tokens if only is None else (tokens[only],)
        if level and activation:
            value = f"{number(activation)} · {percent(activation / maximum, 0)} of max"
            looks = f"r a{level}{' peak' if peak else ''}{'' if known else ' unknown'}"
            parts.append(
                f'<span class="{looks}" data-v="{value}" tabindex="{0 if peak else -1}">{_fired(cells)}</span>'
            )
        else:
            parts.append(_quiet(cells, known))
    parts.append("</div>")
    return Html("".join(parts))


@lru_cache(maxsize=2**15)
def _fired(cells: tuple[tuple[Token, ...], ...]) -> str:
    """The lines of a row with an activation."""
    lines = (
        "".join(_token(token, "t" if token.look == "own" else f"t {token.look}") for token in cell) for cell in cells
    )
    return "".join(f'<span class="l">{line}</span>' for line in lines)


@lru_cache(maxsize=2**16)
def _quiet(cells: tuple[tuple[Token, ...], ...], known: bool) -> str:
    """A row without an activation."""
    lines = (
        "".join(escape(token.text) if token.look == "own" else _token(token, f"t {token.look}") for token in cell)
        for cell in cells
    )
    looks = "r" if known else "r unknown"
    return f'<span class="{looks}">{"".join(f"""<span class="l">{line}</span>""" for line in lines)}</span>'


def _token(token: Token, looks: str) -> str:
    direction = ' dir="ltr"' if token.look == "special" else ""
    return f'<span class="{looks}"{direction}>{escape(token.text)}</span>'


def context_line(line: ContextLine) -> Html:
    """One line of text around its middle row, so that middles stand below each other; what was searched is marked."""
    rows, marked, middle = line.rows, line.marked, line.middle
    first, last = max(0, middle - AROUND), middle + AROUND + 1
    before, at, after = (
        _stretch(rows[some], marked, some.start)
        for some in (slice(first, middle), slice(middle, middle + 1), slice(middle + 1, last))
    )
    return Html(
        f'<span class="kwic" dir="auto"><span class="before"><span>{before}</span></span>'
        f'<span class="at">{at}</span><span class="after"><span>{after}</span></span></span>'
    )


def _stretch(rows: Sequence[Row], marked: Collection[int], first: int) -> str:
    parts = []
    for index, (end, _, level, _, _, tokens) in enumerate(rows, first):
        if end < 0:
            continue
        text = escape("".join(token.text for token in tokens[0] if token.text != UNFINISHED))
        if level:
            text = f'<span class="t a{level}">{text}</span>'
        parts.append(f"<mark>{text}</mark>" if index in marked else text)
    return "".join(parts)
