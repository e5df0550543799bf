"""Firing measures by hand: how often a feature fires and on what text."""

import numpy as np
import pytest

from tests.worlds.dense_codes import feature_codes
from tests.worlds.tiny_store import rows, text_table
from trainer.analysis.per_feature.firings import RowMetadata, corpus_shares, firing_measures, share_of_rows
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import read_texts

ORDER = rows()


def metadata() -> RowMetadata:
    row_order = RowOrder(*(np.array(column, np.int32) for column in zip(*ORDER, strict=True)), None)
    return RowMetadata.from_texts(len(ORDER), row_order, read_texts(text_table(), 2))


def dense(*features: dict[tuple[int, int], float]) -> np.ndarray:
    result = np.zeros((len(ORDER), len(features)), np.float32)
    for feature, firings in enumerate(features):
        for position, value in firings.items():
            result[ORDER.index(position), feature] = value
    return result


def test_measures_of_three_features_by_hand():
    measures = firing_measures(
        feature_codes(
            dense(
                # Sequences 0 and 1 are of document 0, sequence 3 is a chat whose template ends at byte 5.
                {(0, 7): 1.0, (1, 5): 3.0, (3, 4): 2.0},
                {},
                {(3, 5): 4.0, (3, 10): 4.0, (3, 15): 1.0, (4, 10): 1.0},
            )
        ),
        metadata(),
    )

    assert measures["firings"].tolist() == [3, 0, 4]
    assert measures["density"].tolist() == [3 / 19, 0.0, 4 / 19]
    assert measures["max_activation"].tolist() == [3.0, 0.0, 4.0]
    assert measures["mean_activation"].tolist() == pytest.approx([2.0, np.nan, 2.5], nan_ok=True)
    assert measures["squares"].tolist() == [14, 0, 34]
    assert measures["template_share"].tolist() == pytest.approx([1 / 3, np.nan, 1 / 4], nan_ok=True)
    assert measures["documents"].tolist() == [2, 0, 2]
    assert measures["main_corpus"].tolist() == [0, -1, 1]
    assert metadata().texts.corpora == ("wiki", "chat")
    assert measures["main_corpus_share"].tolist() == pytest.approx([2 / 3, np.nan, 3 / 4], nan_ok=True)


def test_the_share_of_first_tokens_counts_the_first_eight_rows_of_a_sequence():
    row_order = RowOrder(np.zeros(10, np.int32), np.arange(10, dtype=np.int32), None)
    firing = np.zeros((10, 1), np.float32)
    firing[[0, 7, 8, 9]] = 1.0

    assert firing_measures(feature_codes(firing), RowMetadata.from_texts(10, row_order, None))[
        "first_token_share"
    ].tolist() == [0.5]


def test_a_document_of_several_sequences_counts_once():
    codes = feature_codes(dense({(0, 7): 1.0, (2, 3): 1.0, (1, 5): 1.0, (1, 9): 1.0}))

    assert firing_measures(codes, metadata())["documents"].tolist() == [2]


def test_without_text_only_measures_of_rows_are_known():
    measures = firing_measures(
        feature_codes(np.array([[1.0], [2.0]], np.float32)), RowMetadata.from_texts(4, None, None)
    )

    assert measures["density"].tolist() == [0.5]
    assert measures["main_corpus"].tolist() == [-1]
    for name in ("template_share", "first_token_share", "documents", "main_corpus_share"):
        assert np.isnan(measures[name]).all(), name
    assert np.isnan(share_of_rows(None))


def test_shares_of_all_rows():
    # 4 + 4 + 3 + 4 rows of wiki, 4 of chat; the first two of sequence 3 are template.
    assert corpus_shares(metadata()).tolist() == [15 / 19, 4 / 19]
    assert share_of_rows(metadata().template) == 2 / 19


def test_firings_are_counted_by_corpus_part_and_by_language():
    corpus, language = metadata().partitions
    codes = feature_codes(dense({(0, 7): 1.0, (1, 5): 1.0, (3, 10): 1.0}, {}), first=6)

    assert corpus.names == ("wiki", "chat")
    assert corpus.columns(6, corpus.firings(codes, metadata().row_order)) == {
        "feature": pytest.approx([6, 6]),
        "corpus": ["wiki", "chat"],
        "firings": pytest.approx([2, 1]),
    }
    assert language.kind == "language"
    assert language.firings(codes, metadata().row_order).sum(axis=1).tolist() == [3, 0]


def test_rows_and_sequences_are_counted_by_corpus_part_and_language():
    columns = metadata().text_part_columns()
    wiki, chat = (list(columns["name"]).index(name) for name in ("wiki", "chat"))

    assert (columns["rows"][wiki], columns["sequences"][wiki]) == (15, 4)
    assert (columns["rows"][chat], columns["sequences"][chat]) == (4, 1)
    languages = np.array(columns["kind"]) == "language"
    assert (columns["rows"][languages].sum(), columns["sequences"][languages].sum()) == (19, 5)


def test_without_text_there_are_no_partitions():
    columns = RowMetadata.from_texts(4, None, None).text_part_columns()

    assert {len(column) for column in columns.values()} == {0}
