"""Search by relevance: which features are found, which come first, where, and what is marked."""

import duckdb
import pytest

from app.results.connection import Results
from app.results.features.context_line import context_line, examples_of
from app.results.features.search import Search, SearchWord, matches_of, search_for, search_words


def found(results: Results, text: str, within: str = "", labelled: tuple[int, ...] = ()) -> list[int]:
    """Features that a search finds, the most relevant first."""
    search = search_for(results, text, within, labelled)
    rows = results.rows(f"select feature from ({search.sql}) order by relevance desc, feature", **search.all_parameters)
    return [feature for (feature,) in rows]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Refusals, refused", ["refusals", "refused"]),
        ("Übermäßig MÜDE", ["ubermaßig", "mude"]),
        ("теперь", ["теперь"]),
        ("语言模型", ["语言", "言模", "模型"]),
        ("语", ["语"]),
        ("();", ["();"]),
        ("copy_right-now", ["copy", "right", "now"]),
        (" \n", []),
        ("now now", ["now"]),
    ],
)
def test_text_is_cut_into_words_of_every_script(text: str, words: list[str]):
    assert [word.word for word in search_words(text)] == words


@pytest.mark.parametrize(
    ("word", "stem"),
    [("refusal", "refus"), ("refused", "refus"), ("now", "now"), ("собаки", "собак"), ("is", ""), ("语言", "")],
)
def test_a_word_is_found_by_its_stem(word: str, stem: str):
    (cut,) = search_words(word)
    assert cut.stem == stem


def test_words_in_contexts_are_found_whatever_their_case(results: Results, tables: duckdb.DuckDBPyConnection):
    expected = {
        feature
        for feature, text in tables.execute("select feature, text from firing where bucket = 'top'").fetchall()
        if "Straße" in text
    }

    assert set(found(results, "sTraße", "contexts")) == expected != set()
    assert found(results, "nothing like it") == []


def test_a_sign_is_no_wildcard(results: Results):
    assert found(results, "%") == []
    assert found(results, "_") == []


def test_what_a_feature_fires_on_comes_before_what_stands_near_by(results: Results, tables: duckdb.DuckDBPyConnection):
    peaks = tables.execute("select feature, peak_byte_end, tokens from firing where bucket = 'top'").fetchall()
    expected = {
        feature
        for feature, peak, tokens in peaks
        if any(token["byte_end"] == peak and "fox" in token["text"] for source in tokens for token in source)
    }

    everywhere, peaking = found(results, "fox"), found(results, "FOX", "peaks")
    assert set(peaking) == expected != set()
    assert set(everywhere[: len(peaking)]) == set(peaking)
    assert set(peaking) <= set(found(results, "fox", "contexts"))


def test_promoted_tokens_of_every_script_are_found(results: Results, tables: duckdb.DuckDBPyConnection):
    expected = {
        feature
        for (feature,) in tables.execute(
            "select distinct feature from logit where token = 'كتاب' and rank > 0"
        ).fetchall()
    }
    assert set(found(results, "كتاب", "promoted")) >= expected != set()
    search = search_for(results, "كتاب", "promoted", ())
    matches = matches_of(results, search, sorted(expected))
    assert all("كتاب" in match.promoted for match in matches.values())


def test_every_word_must_be_found(results: Results):
    both = set(found(results, "fox dog"))

    assert both <= set(found(results, "fox"))
    assert found(results, "fox zebra") == []


def test_labels_and_indexes_are_found_first(results: Results):
    order = found(results, "fox", labelled=(200,))
    assert order[0] == 200
    assert found(results, "12")[0] == 12
    assert found(results, "#12")[0] == 12
    assert search_for(results, "240", "", ()).number is None, "the run has 240 features"
    assert search_for(results, "²", "", ()).number is None


def test_the_context_that_has_the_match_is_shown_with_the_match_marked(results: Results):
    search = search_for(results, "Straße", "contexts", ())
    features = found(results, "Straße", "contexts")
    matches = matches_of(results, search, features)

    for feature, example in examples_of(results, features, search.words, matches).items():
        marked = {"".join(token.text for token in example.line.rows[at].tokens[0]) for at in example.line.marked}
        assert any("Stra" in text or "ße" in text for text in marked), (feature, marked)


def test_a_line_without_a_search_is_around_the_peak_in_tokens_of_the_owner(
    results: Results, tables: duckdb.DuckDBPyConnection
):
    names = {name: source for source, name in tables.execute("select source, name from source").fetchall()}
    for owner in ("smollm2", "gemma3"):
        feature, text, tokens, peak = tables.execute(
            """
            select w.feature, w.text, w.tokens, w.peak_byte_end from firing w join feature f using (feature)
            where bucket = 'top' and rank = 0 and f.owner = ? limit 1
            """,
            [owner],
        ).fetchone()
        line = examples_of(results, [feature], (), {})[feature].line
        (own,) = [token for token in tokens[names[owner]] if token["byte_end"] == peak]
        assert line.rows[line.middle].tokens[0][0].text == own["text"]
        assert line.rows[line.middle].peak
        assert line.marked == frozenset(), text


def test_a_match_far_from_the_peak_moves_the_line_to_it():
    words = [f" w{number}" for number in range(60)]
    ends = [len("".join(words[: at + 1])) for at in range(60)]
    window = {
        "peak": 1.0,
        "peak_byte_end": ends[50],
        "byte_start": 0,
        "text": "".join(words),
        "ends": ends,
        "fired": [[ends[50], 1.0]],
    }

    near, far = (context_line(window, search_words(text)) for text in ("w48", "w3"))

    assert near.rows[near.middle].byte_end == ends[50]
    assert far.rows[far.middle].byte_end == ends[3]
    assert [far.rows[at].byte_end for at in far.marked] == [ends[3]]


@pytest.mark.parametrize(
    ("word", "stem", "text", "spans"),
    [
        ("now", "now", "Now or nowhere, know", ["Now", "nowhere"]),
        ("is", "", "This is", ["is"]),
        ("语言", "", "我们的语言。", ["语言"]),
        ("uber", "uber", "Übermut", ["Übermut"]),
        ("<script", "", "a <script> b", ["<script"]),
        ("now", "now", "a\u2028now\u202e b", ["now"]),
    ],
)
def test_matches_are_whole_words(word: str, stem: str, text: str, spans: list[str]):
    assert [text[at:end] for at, end in SearchWord(word, stem).spans(text)] == spans


def test_a_search_without_words_finds_nothing(results: Results):
    search = search_for(results, "  ", "", ())

    assert isinstance(search, Search)
    assert found(results, "  ") == []
