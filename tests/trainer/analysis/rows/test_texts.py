"""Texts are sliced by bytes, tokens by the bytes where they end."""

import numpy as np
import pyarrow as pa
import pytest

from tests.worlds.tiny_store import SEQUENCES, rows, text_table
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import check_row_order, concatenated_ranges, read_texts
from trainer.errors import StoreError


def row_order_of(pairs: list[tuple[int, int]]) -> RowOrder:
    return RowOrder(*(np.array(column, np.int32) for column in zip(*pairs, strict=True)), None)


def changed(column: str, values: pa.Array) -> pa.Table:
    table = text_table()
    return table.set_column(table.column_names.index(column), column, values)


def test_substrings_are_cut_by_bytes_of_utf_8():
    texts = read_texts(text_table(), 2)
    cut = texts.cut(np.array([4, 0, 3]), np.array([3, 4, 5]), np.array([7, 7, 5]))

    assert cut.to_pylist() == ["\U0001f9ea", "cat", ""]


def test_tokens_of_a_substring_end_in_it_and_include_tokens_on_no_byte_before_them():
    texts = read_texts(text_table(), 2)
    tokens = texts.tokens(np.array([1, 1, 3]), np.array([0, 5, 10]), np.array([5, 11, 15])).to_pylist()
    found = [[[token["text"] for token in source] for source in substring] for substring in tokens]

    assert found == [
        [["<s>", "a", " cat"], ["a cat"]],
        [[" and", " a"], [" and", " a"]],
        [[" welt", "<|end|>"], [" w", "elt"]],
    ]


def test_the_whole_text_has_all_its_tokens():
    texts = read_texts(text_table(), 2)
    everything = np.arange(texts.sequences)
    tokens = texts.tokens(everything, np.zeros(texts.sequences, np.int64), texts.length)

    assert tokens.to_pylist() == text_table()["tokens"].to_pylist()


def test_a_row_is_in_a_template_if_it_ends_after_the_span_begins_and_up_to_its_end():
    texts = read_texts(text_table(), 2)

    # The span is bytes 0 to 5 of sequence 3: "user" and ":" end in it, "hallo" after it; no other sequence has one.
    assert texts.in_template(row_order_of([(2, 3), (3, 0), (3, 4), (3, 5), (3, 10), (4, 5)])).tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_rows_that_end_inside_a_character_are_distinguished_from_rows_between_characters():
    texts = read_texts(text_table(), 2)

    assert texts.at_character_ends(row_order_of([(3, 15), (4, 3), (4, 5), (4, 6), (4, 7), (4, 10)])).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_a_table_cut_from_a_larger_one_reads_the_same():
    whole = pa.concat_tables([text_table(), text_table()]).slice(len(SEQUENCES), len(SEQUENCES))
    texts, expected = read_texts(whole, 2), read_texts(text_table(), 2)

    assert texts.token_text.to_pylist() == expected.token_text.to_pylist()
    assert np.array_equal(texts.token_key, expected.token_key)
    assert texts.data.tobytes() == expected.data.tobytes()
    assert np.array_equal(texts.template, expected.template)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (text_table().drop_columns(["corpus"]), "lacks corpus"),
        (changed("sequence", pa.array([0, 1, 3, 2, 4], pa.int32())), "`sequence` must be 0, 1, 2"),
        (changed("tokens", text_table()["tokens"].combine_chunks().take([0, 1, 2, 4, 3])), "outside its text"),
    ],
)
def test_inconsistent_sequences_are_refused(table, message):
    with pytest.raises(StoreError, match=message):
        read_texts(table, 2)


def test_tokens_of_another_number_of_sources_are_refused():
    with pytest.raises(StoreError, match="each of the 3 sources"):
        read_texts(text_table(), 3)


def test_rows_outside_the_sequences_are_refused():
    texts = read_texts(text_table(), 2)

    check_row_order(texts, row_order_of(rows()))
    with pytest.raises(StoreError, match=r"sequence 5, but sequences\.parquet has 5 rows"):
        check_row_order(texts, row_order_of([(0, 7), (5, 1)]))
    with pytest.raises(StoreError, match="ends at byte 23, outside its text of 22 bytes"):
        check_row_order(texts, row_order_of([(0, 7), (0, 23)]))


def test_concatenated_ranges_list_the_indices_of_every_range():
    at, start = concatenated_ranges(np.array([5, 2, 9]), np.array([2, 0, 3]))

    assert at.tolist() == [5, 6, 9, 10, 11]
    assert start.tolist() == [0, 2, 2, 5]
