"""Text that two models predict differently, span by span in both models' tokens."""

from dataclasses import dataclass
from typing import Any

from app.results.features.tokens import SourceTokens, token_rows

STRONGEST = 0.6931471805599453
"""Largest Jensen-Shannon divergence, ln 2: the models' expectations are disjoint."""


@dataclass(frozen=True)
class PassageSpan:
    """A span of a passage."""

    byte_end: int
    """-1 for tokens that stand for no text."""
    tokens: tuple[tuple[str, ...], ...]
    """Of the base and of the source."""
    level: int
    """Step of the colour scale, 0 to 10."""
    peak: bool
    """Whether the models differ most here, of all spans of the passage."""
    divergence: float | None
    """Jensen-Shannon, nats; None where it was not compared."""
    base_surprise: float | None
    """Nats, as the other."""
    source_surprise: float | None


def passage_spans(
    start: int, text: str, tokens: list[list[dict[str, Any]]], spans: list[dict[str, Any]]
) -> tuple[PassageSpan, ...]:
    """The spans of a passage; those without a divergence are shaded by how far apart the surprises are."""
    span_at = {span["byte_end"]: span for span in spans}
    values = {
        end: abs(span["source_surprise"] - span["base_surprise"]) if span["divergence"] is None else span["divergence"]
        for end, span in span_at.items()
    }
    without_divergence = any(span["divergence"] is None for span in spans)
    scale = max(values.values(), default=1.0) if without_divergence else STRONGEST
    peak = max(values, key=lambda end: values[end], default=None)
    rows = token_rows(
        [SourceTokens.from_tokens(line) for line in tokens],
        values,
        scale=scale,
        peak=peak,
        text=text.encode(),
        start=start,
    )
    return tuple(
        PassageSpan(
            row.byte_end,
            tuple(tuple(token.text for token in tokens_of_source) for tokens_of_source in row.tokens),
            row.level,
            row.peak,
            *(span_at.get(row.byte_end, {}).get(key) for key in ("divergence", "base_surprise", "source_surprise")),
        )
        for row in rows
    )
