"""Contexts of a feature, whole sequences, and the firings kept of each."""

import duckdb
import pytest

from app.errors import NotFound
from app.results.connection import Results
from app.results.features.contexts import bucket_counts, kept_counts, kept_windows, whole_sequence


def count_with_repeats(windows) -> int:
    """Number of windows, repeats included."""
    return sum(1 + len(window.repeats) for window in windows)


def test_windows_come_strongest_first_and_grouping_loses_none(results: Results):
    windows = kept_windows(results, 3, "top", "", scale=1.0)

    peaks = [window.peak for window in windows]
    assert peaks == sorted(peaks, reverse=True)
    assert count_with_repeats(windows) == 8
    for window in windows:
        assert all(repeat.peak <= window.peak for repeat in window.repeats)


def test_the_peak_of_a_window_has_its_strongest_activation(results: Results):
    for window in kept_windows(results, 3, "top", "", scale=1.0):
        strongest = max(row.activation or 0 for row in window.rows)
        assert window.rows[window.peak_index].activation == pytest.approx(strongest)
        assert window.peak == pytest.approx(strongest)


def test_repeats_have_the_same_words_around_the_peak(results: Results):
    folded = [
        (window, repeat)
        for feature in range(60)
        for window in kept_windows(results, feature, "top", "", scale=1.0)
        for repeat in window.repeats
    ]
    assert folded, "the tiny world holds repeated sentences"
    for window, repeat in folded:
        words = [
            "".join(token.text for token in each.rows[each.peak_index].tokens[0]).strip() for each in (window, repeat)
        ]
        assert words[0] == words[1]


def test_kinds_of_contexts_are_counted_per_corpus_part(results: Results, tables: duckdb.DuckDBPyConnection):
    kept = kept_counts(results, 3)

    assert [(bucket.bucket, bucket.count) for bucket in bucket_counts(kept, "")] == [
        ("top", 8),
        *((f"q{fifth}", 3) for fifth in (5, 4, 3, 2, 1)),
    ]
    corpus = kept[0].corpus
    (expected,) = tables.execute(
        "select count(*) from firing where feature = 3 and bucket = 'top' and corpus = ?", [corpus]
    ).fetchone()
    assert bucket_counts(kept, corpus)[0].count == expected
    assert bucket_counts(kept, "nowhere") == []


def test_a_whole_sequence_has_activations_inside_kept_windows_only(results: Results, tables):
    sequence, start, size = tables.execute(
        "select sequence, byte_start, strlen(text) from firing where feature = 3 order by byte_start desc limit 1"
    ).fetchone()

    whole = whole_sequence(results, sequence, 3, scale=1.0)

    assert {row.known for row in whole.rows if start < row.byte_end <= start + size} == {True}
    assert [row for row in whole.rows if row.activation and not row.known] == []
    (text,) = tables.execute("select text from sequence where sequence = ?", [sequence]).fetchone()
    assert whole.rows[-1].byte_end in (len(text.encode()), -1)


def test_a_context_that_was_not_kept_is_not_found(results: Results):
    with pytest.raises(NotFound, match="keeps no sequence 99999"):
        whole_sequence(results, 99999, 3, scale=1.0)
