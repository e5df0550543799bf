"""How compared text is cut into windows, and what is said to be in them."""

import numpy as np

from tests.worlds.tiny_store import Sequence, text_table
from trainer.analysis.behaviour.span_table import SpanTable, read_spans, write_spans
from trainer.analysis.behaviour.windows import WINDOW, Candidate, TextWindows, cut_windows
from trainer.analysis.per_feature.firings import SequencePartition
from trainer.analysis.rows.texts import read_texts

ANSWER = "Assistant: "


def spans_of(texts: list[str], byte_starts: list[list[int]]) -> SpanTable:
    """Spans between given bytes of every text, on which the models are 1 apart and the noised copies 0.5."""
    sequence = np.concatenate([np.full(len(starts) - 1, at) for at, starts in enumerate(byte_starts)])
    starts = np.concatenate([one[:-1] for one in byte_starts])
    ends = np.concatenate([one[1:] for one in byte_starts])
    count = len(sequence)
    words = np.full((2, count), "x", object)
    return SpanTable(
        0,
        1,
        sequence,
        starts,
        ends,
        np.ones(count),
        np.full(count, 0.5),
        np.full(count, 0.5),
        np.zeros((2, count)),
        words,
    )


def cut(
    texts: list[str], byte_starts: list[list[int]] | None = None, corpus: str = "wiki"
) -> tuple[SpanTable, TextWindows]:
    """Windows of texts, each a document of its own, with a span for each of their bytes unless others are given."""
    sequences = tuple(
        Sequence(
            text,
            (text,),
            (text,),
            corpus=corpus,
            document=number,
            template=((text.index(ANSWER), text.index(ANSWER) + len(ANSWER)),) if ANSWER in text else (),
        )
        for number, text in enumerate(texts)
    )
    spans = spans_of(texts, byte_starts or [list(range(len(text.encode()) + 1)) for text in texts])
    flat = read_texts(text_table(sequences), 2)
    parts = (SequencePartition("corpus", flat.corpus, flat.corpora),)
    return spans, cut_windows(spans, flat, parts, np.arange(len(texts)))


def of(windows: TextWindows, kind: str, name: str) -> list[int]:
    return windows.members[[windows.candidates.index(Candidate(kind, name))]].indices.tolist()


def test_windows_are_twelve_spans_of_one_sequence_and_sum_what_is_apart():
    _, windows = cut(["a" * 30, "b" * 12, "c" * 5, "d" * 13])

    assert windows.first.tolist() == [0, 12, 24, 30, 42, 47, 59]
    assert windows.stop.tolist() == [12, 24, 30, 42, 47, 59, 60]
    assert windows.units.apart.tolist() == [12, 12, 6, 12, 5, 12, 1]
    assert windows.units.reference.tolist() == [6, 6, 3, 6, 2.5, 6, 0.5]
    assert windows.units.group.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert WINDOW == 12


def test_a_word_is_in_the_window_where_it_begins_and_stays_known_in_later_ones():
    text = "Nothing here. Ahoy there, my dear old friend"

    _, windows = cut([text] * 4)

    per_text = -(-len(text) // 12)
    assert of(windows, "word", "ahoy") == [1 + per_text * number for number in range(4)], "byte 14 is in the second"
    later = [at + per_text * number for number in range(4) for at in range(2, per_text)]
    assert of(windows, "after", "ahoy") == later
    assert of(windows, "corpus", "wiki") == list(range(4 * per_text))
    assert Candidate("word", "a") not in windows.candidates


def test_words_of_scripts_with_accents_and_without_spaces_are_found_at_their_bytes():
    _, windows = cut(["ÜBER 中文字符 don’t"] * 4)

    assert of(windows, "word", "über") == [0, 3, 6, 9]
    assert of(windows, "word", "中文") == [0, 3, 6, 9] and of(windows, "word", "字符") == [1, 4, 7, 10]
    assert of(windows, "word", "don’t") == [1, 4, 7, 10]


def test_what_fewer_than_four_groups_of_documents_have_is_no_candidate():
    _, windows = cut(["rare fox"] * 3 + ["plain"] * 4)

    names = {candidate.name for candidate in windows.candidates}
    assert "plain" in names and "fox" not in names


def test_the_window_after_the_header_of_an_answer_is_its_beginning():
    text = f"User: hi\n\n{ANSWER}Ahoy there, my dear"
    start = text.index("Ahoy")
    scored = [list(range(start, len(text) + 1))] * 4

    _, windows = cut([text] * 4, scored)

    assert of(windows, "place", "the beginning of answers") == [0, 2, 4, 6]


def test_spans_come_back_from_their_file_as_they_were_written(tmp_path):
    spans, _ = cut(["a b", "über"])
    expected = np.array([["a", None, "ü", "", "x", "y", "z", "z"], ["b"] * 8], object)
    spans = SpanTable(**(vars(spans) | {"expected": expected, "reference": np.full(8, np.nan)}))

    write_spans(tmp_path / "spans.parquet", [spans, SpanTable(**(vars(spans) | {"base": 1, "source": 2}))])
    first, second = read_spans(tmp_path / "spans.parquet")

    assert (first.base, first.source, second.base, second.source) == (0, 1, 1, 2)
    assert not first.has_reference and np.isnan(first.reference).all()
    assert first.byte_end.tolist() == spans.byte_end.tolist()
    assert first.expected[0].tolist() == expected[0].tolist()
    write_spans(tmp_path / "none.parquet", [])
    assert read_spans(tmp_path / "none.parquet") == read_spans(tmp_path / "nowhere.parquet") == []
