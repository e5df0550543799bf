"""Fills `example`, the lines of text that lists of features show, from firings and logit effects."""

import duckdb

from trainer.results.search import CONTEXTS

FEATURES = 1024
"""Features sorted at a time: their lines must fit into the memory that a draft may use."""

_FILL = """
    insert into example
    select w.feature, w.rank, to_json({
        'peak': w.peak, 'peak_byte_end': w.peak_byte_end, 'byte_start': w.byte_start, 'text': w."text",
        'ends': list_transform(
            list_filter(w.tokens[coalesce(s.source, 0) + 1], lambda token: token.byte_end >= 0),
            lambda token: token.byte_end
        ),
        'fired': list_transform(w.activations, lambda row: [row.byte_end, round(row.activation, 4)]),
        'promoted': case when w.rank = 0 then p.tokens end
    })
    from firing w join feature f using (feature)
    left join source s on s.name = string_split(f.owner, '+')[1]
    left join (
        select feature, source, list(token order by rank) as tokens from logit
        where rank between 1 and 5 and feature between $first and $last
        group by feature, source
    ) p on p.feature = w.feature and p.source = coalesce(s.source, 0)
    where w.bucket = 'top' and w.rank < $contexts and w.feature between $first and $last
    order by w.feature, w.rank
"""


def fill_examples(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill `example` in the order of features."""
    row = connection.execute("select count(*) from feature").fetchone()
    for first in range(0, row[0] if row else 0, FEATURES):
        connection.execute(_FILL, {"contexts": CONTEXTS, "first": first, "last": first + FEATURES - 1})
