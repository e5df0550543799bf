"""Which sources a feature belongs to, with the colour and shape that stand for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.results.connection import Results, Source

PALETTE = 6
"""Colours and shapes for sources in site.css and _macros.html; further sources begin again."""


@dataclass(frozen=True)
class Owner:
    """One owner of features."""

    owner: str
    """As in the results: `shared`, a source's name, names joined by +, or `other`."""
    look: str
    """o0, o1, … for a source, shared, several or other: a class of site.css and a shape."""
    words: str
    """Its meaning, as a phrase."""


def owners_of(results: Results) -> dict[str, Owner]:
    """Every owner that features of a run have, and every source, by name."""
    found = [owner for (owner,) in results.rows("select distinct owner from feature order by owner")]
    names = ["shared", *(source.name for source in results.sources), "other"]
    ordered = names + [owner for owner in found if owner not in names]
    return {owner: owner_of(owner, results.sources) for owner in ordered}


def owner_of(owner: str, sources: Sequence[Source]) -> Owner:
    """One owner's look and words."""
    names = [source.name for source in sources]
    if owner in names:
        return Owner(owner, f"o{names.index(owner) % PALETTE}", f"only {owner}")
    if owner == "shared":
        return Owner(owner, "shared", "both sources" if len(names) == 2 else "all sources")
    if "+" in owner:
        return Owner(owner, "several", f"only {' and '.join(owner.split('+'))}")
    return Owner(owner, "other", "neither shared nor exclusive")
