"""Which passages are selected, on hand-made scores."""

import json

import numpy as np
import pytest

from trainer.baselines.divergence import SpanScores, divergence_rows
from trainer.baselines.passages import MAX_PASSAGES, passage_rows
from trainer.baselines.spans import AlignedSequence


def scored(
    sequence: int, text: str, divergence: list[float], scored: list[bool] | None = None, document: int | None = None
) -> SpanScores:
    """Scores of a text with one token per byte in both sources, by default in a document of its own."""
    size = len(text.encode())
    at = np.arange(size + 1)
    tokens = [{"text": "?", "byte_end": end} for end in at.tolist()]
    aligned = AlignedSequence(
        sequence=sequence,
        document=sequence if document is None else document,
        corpus="wiki",
        text=text.encode(),
        tokens=(tokens, tokens),
        ids=(at, at),
        anchors=at,
        positions=(at, at),
        scored=np.array(scored or [True] * size),
    )
    values = np.where(aligned.scored, np.array(divergence), np.nan)
    return SpanScores(aligned, "byte", np.stack([values] * 3), np.zeros((2, size)), np.zeros((2, size), int))


def test_passages_of_forty_spans_are_ranked_and_no_document_supplies_more_than_two():
    different = scored(0, "a" * 120, [0.3] * 40 + [0.1] * 40 + [0.2] * 40)
    similar = [scored(document, "b" * 40, [0.05 / document] * 40) for document in range(1, 9)]

    found = passage_rows([*similar, different], (0, 1))

    assert [(row["sequence"], row["byte_start"]) for row in found[:3]] == [(0, 0), (0, 80), (1, 0)]
    assert [row["apart"] for row in found[:3]] == pytest.approx([0.3, 0.2, 0.05])
    assert len(found) == MAX_PASSAGES and found[-1]["sequence"] == 6
    assert found[1]["text"] == "a" * 40 and len(found[1]["tokens"][0]) == len(found[1]["places"]) == 40


def test_sequences_of_one_document_share_its_limit_of_two_passages():
    different = [scored(sequence, "a" * 40, [0.3 + sequence / 10] * 40, document=0) for sequence in range(3)]
    similar = scored(3, "b" * 40, [0.1] * 40)

    found = passage_rows([*different, similar], (0, 1))

    assert [row["sequence"] for row in found] == [2, 1, 3]


def test_a_passage_is_ranked_by_its_scored_spans_and_left_out_when_they_are_few():
    half = scored(0, "a" * 40, [0.1] * 20 + [0.6] * 20, [True] * 20 + [False] * 20)
    fewer = scored(1, "a" * 40, [0.1] * 40, [True] * 19 + [False] * 21)

    (row,) = passage_rows([half, fewer], (0, 1))

    assert row["sequence"] == 0 and row["apart"] == pytest.approx(0.1)
    assert [place["byte_end"] for place in row["places"]] == list(range(1, 21))


def test_no_passage_begins_or_ends_inside_a_character():
    text = "a" * 39 + "語" + "b" * 40

    found = passage_rows([scored(0, text, [0.1] * 82)], (0, 1))

    assert sorted(row["text"] for row in found) == ["a" * 39 + "語", "b" * 40]


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["divergence", "surprise"])
@pytest.mark.filterwarnings("error")
def test_spans_on_which_a_model_gives_no_number_are_left_out(number, where):
    whole, half, broken = (scored(sequence, "a" * 40, [0.1 + sequence] * 40) for sequence in range(3))
    for scores, spans in ((half, slice(0, 15)), (broken, slice(0, 40))):
        array = scores.divergence if where == "divergence" else scores.surprise
        array[:, spans] = number

    found = passage_rows([whole, half, broken], (0, 1))

    assert [row["sequence"] for row in found] == [1, 0]
    assert [row["apart"] for row in found] == pytest.approx([1.1, 0.1])
    assert [len(row["places"]) for row in found] == [25, 40]
    json.dumps(found, allow_nan=False)
    json.dumps(divergence_rows([whole, half, broken], (0, 1)), allow_nan=False)
