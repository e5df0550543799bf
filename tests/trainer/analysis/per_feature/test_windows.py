"""Windows hold whole tokens of every source, whole characters and the requested rows."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds.dense_codes import feature_codes
from tests.worlds.tiny_store import SEQUENCES, Sequence, rows, text_table
from trainer.analysis.per_feature.contexts import BUCKETS, TOP, KeptFirings, Windows, select_firings, sequence_columns
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import read_texts
from trainer.recipe.measuring import ContextsRecipe


def row_order_of(sequences: tuple[Sequence, ...] = SEQUENCES) -> tuple[RowOrder, list[tuple[int, int]]]:
    order = rows(sequences)
    return RowOrder(*(np.array(column, np.int32) for column in zip(*order, strict=True)), None), order


def one(position: int, peak: float = 1.0) -> KeptFirings:
    zero = np.zeros(1, np.int64)
    return KeptFirings(zero, np.array([TOP]), zero, np.array([position]), np.array([peak], np.float32))


@pytest.mark.parametrize(
    ("row", "size", "text", "left", "right"),
    [
        # Rows of sequence 0 end at 7, 14, 18, 22.
        ((0, 14), 2, "the cat sat on", ["the", " cat", " sat", " on"], ["the c", "at", " sat on"]),
        ((0, 18), 1, " the", [" the"], [" the"]),
        ((0, 22), 2, " the mat", [" the", " mat"], [" the", " mat"]),
        ((0, 7), 99, "the cat sat on the mat", list(SEQUENCES[0].left), list(SEQUENCES[0].right)),
        # Rows of sequence 4 end at 3, 5, 7, 10, and 5 is inside the test tube.
        ((4, 5), 1, "\U0001f9ea", ["\ufffd", "\ufffd", "\ufffd"], ["\ufffd", "\ufffd\ufffd"]),
        ((4, 7), 1, "\U0001f9ea", ["\ufffd", "\ufffd", "\ufffd"], ["\ufffd", "\ufffd\ufffd"]),
    ],
)
def test_a_window_by_hand(row, size, text, left, right):
    row_order, order = row_order_of()
    windows = Windows(row_order, read_texts(text_table(), 2), size)
    position = order.index(row)
    dense = np.zeros((len(order), 1), np.float32)
    dense[position] = 1.0
    columns = windows.columns(feature_codes(dense, first=8), one(position))

    assert columns["text"].to_pylist() == [text]
    assert [[token["text"] for token in source] for source in columns["tokens"].to_pylist()[0]] == [left, right]
    assert columns["feature"].tolist() == [8]
    assert columns["bucket"].to_pylist() == ["top"]
    assert columns["sequence"].tolist() == [row[0]]
    assert columns["peak_byte_end"].tolist() == [row[1]]


def test_a_window_holds_the_features_activations_at_its_rows_and_no_others():
    row_order, order = row_order_of()
    dense = np.zeros((len(order), 2), np.float32)
    dense[order.index((0, 7)), 0] = 4.0
    dense[order.index((0, 14)), 0] = 2.0
    dense[order.index((0, 22)), 0] = 1.0
    dense[order.index((0, 14)), 1] = 9.0
    columns = Windows(row_order, read_texts(text_table(), 2), 3).columns(
        feature_codes(dense), one(order.index((0, 14)))
    )

    assert columns["activations"].to_pylist() == [
        [{"byte_end": 7, "activation": 4.0}, {"byte_end": 14, "activation": 2.0}]
    ]


def chopped(text: str, seed: int) -> tuple[str | bytes | tuple[str], ...]:
    """A text cut into byte tokens at random, with tokens that cover no byte between them."""
    rng, data = random.Random(seed), text.encode()
    cuts = sorted({0, len(data), *(rng.randrange(1, len(data)) for _ in range(rng.randrange(len(data))))} - {0})
    tokens: list[str | bytes | tuple[str]] = []
    for low, high in zip([0, *cuts[:-1]], cuts, strict=True):
        if rng.random() < 0.2:
            tokens.append(("<x>",))
        tokens.append(data[low:high])
    return (*tokens, *((("<end>",),) if rng.random() < 0.5 else ()))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab é語\U0001f9ea", min_size=2, max_size=12), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    size=st.integers(1, 6),
)
def test_any_window_is_a_substring_of_its_text_and_both_tokenizations_cover_it_to_the_byte(texts, seed, size):
    sequences = tuple(
        Sequence(text, chopped(text, seed + 2 * n), chopped(text, seed + 2 * n + 1)) for n, text in enumerate(texts)
    )
    row_order, order = row_order_of(sequences)
    dense = np.random.default_rng(seed).choice([0.0, 1.0, 2.0], (len(order), 2)).astype(np.float32)
    codes = feature_codes(dense)
    kept = select_firings(codes, row_order, ContextsRecipe(top=9, per_quantile=9))
    columns = Windows(row_order, read_texts(text_table(sequences), 2), size).columns(codes, kept)

    for index, tokens in enumerate(columns["tokens"].to_pylist()):
        sequence, low = int(columns["sequence"][index]), int(columns["byte_start"][index])
        text = columns["text"][index].as_py().encode()
        high = low + len(text)
        assert sequences[sequence].text.encode()[low:high] == text
        assert low < columns["peak_byte_end"][index] <= high
        whole = text_table(sequences)["tokens"][sequence].as_py()
        for in_window, in_sequence in zip(tokens, whole, strict=True):
            inside = [token["byte_end"] for token in in_sequence if low < token["byte_end"] <= high]
            assert [token["byte_end"] for token in in_window if token["byte_end"] >= 0] == inside
            assert max(inside) == high or low + len(text) == len(sequences[sequence].text.encode())
        feature = int(kept.feature[index])
        expected = [
            {"byte_end": end, "activation": dense[row, feature]}
            for row, (row_sequence, end) in enumerate(order)
            if row_sequence == sequence and low < end <= high and dense[row, feature]
        ]
        assert columns["activations"][index].as_py() == expected
        ends = [end for row_sequence, end in order if row_sequence == sequence]
        assert sum(low < end <= high for end in ends) >= min(size, len(ends))


def test_sequence_columns_hold_whole_sequences():
    columns = sequence_columns(read_texts(text_table(), 2), np.array([2, 3]))

    assert columns["text"].to_pylist() == ["dog dog cat", "user:hallo welt"]
    assert columns["document"].tolist() == [1, 2]
    assert columns["corpus"].to_pylist() == ["wiki", "chat"]
    assert columns["held_out"].tolist() == [True, False]
    assert columns["tokens"].to_pylist() == text_table()["tokens"].to_pylist()[2:4]
    assert BUCKETS[TOP] == "top"
