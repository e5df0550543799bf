"""Finds features by text in their contexts, by the tokens they peak on, or by index."""

from collections import defaultdict

from app.results.connection import Results, RunCatalog


def features_with_text(results: Results, text: str) -> set[int]:
    """Features that have the text, in any case, in a kept window."""
    # Few sequences hold the text and many windows are cut from each: the CASE keeps windows of other sequences unread.
    rows = results.rows(
        """
        with holding as materialized (select sequence from sequence where contains(lower("text"), lower($wanted)))
        select distinct f.feature from firing f join holding h on f.sequence = h.sequence
        where case when h.sequence >= 0 then contains(lower(f."text"), lower($wanted)) end
        """,
        wanted=text,
    )
    return {feature for (feature,) in rows}


def features_peaking_on(catalog: RunCatalog, run: str, text: str) -> set[int]:
    """Features with a kept firing whose strongest token holds the text, in any case and in any source."""
    wanted = text.lower().strip()
    table = catalog.cached(run, "peaks", peak_tokens)
    return {feature for token, features in table.items() if wanted in token for feature in features}


def peak_tokens(results: Results) -> dict[str, set[int]]:
    """Inverted index: lower-case tokens that end at the peaks of kept firings, with their features."""
    rows = results.rows(
        """
        select distinct feature, lower(token."text")
        from (
            select feature, peak_byte_end, unnest(flatten(tokens)) as token from firing
        )
        where token.byte_end = peak_byte_end
        """
    )
    table: defaultdict[str, set[int]] = defaultdict(set)
    for feature, token in rows:
        table[token].add(feature)
    return dict(table)


def feature_with_index(results: Results, text: str) -> set[int]:
    """The feature whose index the text is, such as `123` or `#123`, if the run has it."""
    digits = text.strip().removeprefix("#")
    if digits.isascii() and digits.isdigit() and int(digits) < results.features:
        return {int(digits)}
    return set()
