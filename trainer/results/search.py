"""Fills `search_word`, the inverted table that searches by relevance read, from firings and logit effects.

Words are cut by `words.sql`. The weight of a word for a feature is a product of three factors, each 0 to 1, times the
weight of its field: how often the feature has it (saturating, as in BM25, Robertson and Zaragoza 2009), and how rare
it is among features.
"""

from pathlib import Path

import duckdb
import pyarrow as pa

WORDS = Path(__file__).with_name("words.sql")
CONTEXTS = 10
"""Strongest contexts of a feature that are searched."""
FIELD_WEIGHTS = {"peak": 4.0, "promoted": 4.0, "suppressed": 1.5, "context": 1.0}
"""Weight of a word that a feature fires on, promotes, suppresses, or has somewhere in its contexts."""
HALF = 2.0
"""Occurrences at which the factor of their number is a half, before it is scaled to 1 at CONTEXTS."""
COMMON, SEVERAL = 0.25, 50
"""A word in the contexts of more than this share of the features, and of several, tells nothing there."""

_STAGED = """
create or replace temp table staged_word (feature integer, field text, word text, hits float, rank integer)
"""
# Words are cut once per distinct piece of text between spaces: cutting is what costs.
_FROM_CONTEXTS = """
insert into staged_word
with piece as (
    select feature, rank, unnest(list_distinct(string_split("text", ' '))) as piece
    from rows where bucket = 'top' and rank < $contexts
),
cut as materialized (select piece, words(piece, true) as words from (select distinct piece from piece)),
word as (select feature, rank, unnest(words) as word from piece join cut using (piece))
select feature, 'context', word, count(distinct rank), min(rank) from word group by feature, word
"""
_FROM_PEAKS = """
insert into staged_word
with peak as (
    select feature, rank, tokens,
        peak_byte_end,
        try(decode(encode("text")[1:peak_byte_end - byte_start])) as before,
        try(decode(encode("text")[peak_byte_end - byte_start + 1:])) as after
    from rows where bucket = 'top' and rank < $contexts
),
written as (
    select feature, rank, unnest(list_distinct(list_append(
        list_transform(
            list_filter(flatten(tokens), lambda token: token.byte_end = peak_byte_end), lambda token: token."text"
        ),
        case when not regexp_matches(before, '[' || unspaced() || ']$') then
            regexp_extract(before, '[\\p{L}\\p{N}\\p{M}]+$')
            || regexp_extract(after, '^[\\p{L}\\p{N}\\p{M}]+')
        end
    ))) as written
    from peak
),
word as (
    select feature, rank, unnest(words_or_sign(written, true)) as word from written
    where not contains(written, '\ufffd')
)
select feature, 'peak', word, count(distinct rank), min(rank) from word group by feature, word
"""
_FROM_LOGITS = """
insert into staged_word
with word as (
    select feature, rank, unnest(words_or_sign(token, true)) as word
    from rows where not contains(token, '\ufffd')
)
select
    feature, case when rank > 0 then 'promoted' else 'suppressed' end as field, word,
    $contexts / min(abs(rank)), null
from word group by feature, field, word
"""
_FILL = """
insert into search_word
with field as (select unnest($fields) as field, unnest($weights) as weight),
frequency as (select word, field, count(*) as features from staged_word group by word, field),
run as (select count(*) as features from feature)
select word, feature, field,
    field.weight * (1 + $half / $contexts) * hits / (hits + $half)
    * ln(1 + run.features / frequency.features) / ln(1 + run.features),
    rank
from staged_word s join frequency using (word, field) join field using (field) cross join run
where field <> 'context' or frequency.features <= greatest($common * run.features, $several)
order by word, field, feature
"""


def begin_search_words(connection: duckdb.DuckDBPyConnection) -> None:
    """Prepare a connection to stage words."""
    connection.execute(WORDS.read_text(encoding="utf-8"))
    connection.execute(_STAGED)


def stage_search_words(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:  # noqa: ARG001
    """Stage the words of rows of `firing` or `logit`, all of a feature's at once; other tables have none."""
    # DuckDB finds `rows` by its name here.
    for statement in {"firing": (_FROM_CONTEXTS, _FROM_PEAKS), "logit": (_FROM_LOGITS,)}.get(table, ()):
        connection.execute(statement, {"contexts": CONTEXTS})


def fill_search_words(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill `search_word` with the words staged."""
    fields, weights = [*FIELD_WEIGHTS], [*FIELD_WEIGHTS.values()]
    parameters = {
        "fields": fields,
        "weights": weights,
        "half": HALF,
        "contexts": CONTEXTS,
        "common": COMMON,
        "several": SEVERAL,
    }
    connection.execute(_FILL, parameters)
    connection.execute("drop table staged_word")
