"""Tokens of two tokenizers are cut into rows, each with the activation measured there."""

import pytest

from app.results.features.tokens import Row, SourceTokens, Token, level_of, token_rows, visible


def tokens(*pieces: tuple[str, int]) -> SourceTokens:
    return SourceTokens.from_tokens([{"text": text, "byte_end": end} for text, end in pieces])


def spelled(rows: list[Row]) -> list[tuple[str, ...]]:
    """Per row what every source shows, tokens apart."""
    return [tuple("|".join(token.text for token in cell) for cell in row.tokens) for row in rows]


def test_a_row_ends_where_tokens_of_all_sources_end():
    left = tokens(("The", 3), (" cat", 7), ("s", 8), (" sat", 12))
    right = tokens(("T", 1), ("he", 3), (" cats", 8), (" s", 10), ("at", 12))

    rows = token_rows([left, right], {8: 2.0}, scale=4.0, peak=8, text=b"The cats sat")

    assert spelled(rows) == [("The", "T|he"), (" cat|s", " cats"), (" sat", " s|at")]
    assert [row.byte_end for row in rows] == [3, 8, 12]
    assert [row.activation for row in rows] == [None, 2.0, None]
    assert [row.peak for row in rows] == [False, True, False]
    assert [row.level for row in rows] == [0, 5, 0]


def test_only_the_token_that_ends_the_row_carries_its_value():
    rows = token_rows([tokens(("a", 1), ("b", 2)), tokens(("ab", 2))], {2: 1.0}, scale=1.0, peak=2, text=b"ab")

    assert rows[0].tokens == ((Token("a", "part"), Token("b", "own")), (Token("ab", "own"),))


def test_tokens_without_text_get_a_row_of_their_own_without_a_value():
    left = tokens(("<s>", -1), ("a", 1), ("<turn>", -1), ("b", 2))
    right = tokens(("<bos>", -1), ("a", 1), ("b", 2))

    rows = token_rows([left, right], {1: 1.0, 2: 1.0}, scale=1.0, peak=None, text=b"ab")

    assert spelled(rows) == [("<s>", "<bos>"), ("a", "a"), ("<turn>", ""), ("b", "b")]
    assert [row.byte_end for row in rows] == [-1, 1, -1, 2]
    assert rows[0].tokens[0][0].look == "special"
    assert rows[2].activation is None


def test_tokens_after_the_last_shared_end_are_shown_without_a_value():
    rows = token_rows(
        [tokens(("a", 1), ("bc", 3)), tokens(("a", 1), ("b", 2))], {3: 9.0}, scale=9.0, peak=3, text=b"abc"
    )

    assert spelled(rows) == [("a", "a"), ("bc", "b")]
    assert (rows[1].activation, rows[1].byte_end, rows[1].peak) == (None, -1, False)


def test_a_windows_byte_ends_count_from_the_start_of_the_sequence():
    rows = token_rows([tokens(("b", 12))] * 2, {12: 1.0}, scale=1.0, peak=12, text=b"b", start=11)

    assert [(row.byte_end, row.peak, row.activation) for row in rows] == [(12, True, 1.0)]


def test_the_token_that_completes_a_character_shows_it_and_earlier_ones_a_sign():
    text = "a👍".encode()
    left = tokens(("a", 1), ("\ufffd", 3), ("\ufffd", 5))
    right = tokens(("a", 1), ("👍", 5))

    rows = token_rows([left, right], {}, scale=1.0, peak=None, text=text)

    assert spelled(rows) == [("a", "a"), ("‥|👍", "👍")]


def test_three_sources_share_fewer_rows():
    sources = [tokens(("a", 1), ("b", 2)), tokens(("ab", 2)), tokens(("a", 1), ("b", 2))]

    assert spelled(token_rows(sources, {}, scale=1.0, peak=None, text=b"ab")) == [("a|b", "ab", "a|b")]


def test_outside_the_kept_windows_nothing_is_known():
    rows = token_rows(
        [tokens(("a", 1), ("b", 2), ("c", 3))] * 2, {2: 1.0}, scale=1.0, peak=2, text=b"abc", known=[(1, 2)]
    )

    assert [row.known for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("activation", "level"), [(None, 0), (0.0, 0), (0.001, 1), (1.0, 1), (1.01, 2), (5.0, 5), (10.0, 10), (12.0, 10)]
)
def test_the_colour_scale_has_ten_equal_steps(activation: float | None, level: int):
    assert level_of(activation, 10.0) == level


def test_a_feature_that_never_fired_has_no_colour():
    assert level_of(1.0, 0.0) == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" fox", " fox"),
        (" ", " "),
        ("   ", "···"),
        ("\n\n", "↵↵"),
        ("\r\n", "⟨0D⟩↵"),
        ("\tx", "⇥x"),
        ("\x00", "⟨00⟩"),
        ("a\u202eb", "a⟨202E⟩b"),
        ("\ufeffa", "⟨FEFF⟩a"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("كتاب", "كتاب"),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_nothing_invisible_is_left_in_a_token(text: str, shown: str):
    assert visible(text) == shown
