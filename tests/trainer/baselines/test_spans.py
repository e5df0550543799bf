"""Which spans of a text two models can be compared on."""

import numpy as np

from tests.worlds.tiny_store import SEQUENCES, Sequence, text_table, tiny_store
from trainer.baselines.spans import align_sequence, aligned_sequences


def line_of(sequence: Sequence) -> dict:
    return text_table((sequence,)).to_pylist()[0]


def test_spans_lie_between_anchors_and_have_the_tokens_of_every_source():
    sequence = align_sequence(line_of(SEQUENCES[0]), [[], []])

    # left: the| cat| sat| on| the| mat, right: the c|at| sat on| the| mat
    assert sequence.anchors.tolist() == [7, 14, 18, 22]
    assert sequence.positions[0].tolist() == [1, 3, 4, 5]
    assert sequence.positions[1].tolist() == [1, 2, 3, 4]
    assert sequence.lengths.tolist() == [7, 4, 4]
    predicted, span = sequence.predicted_tokens(0)
    assert predicted.tolist() == [2, 3, 4, 5] and span.tolist() == [0, 0, 1, 2]
    predicted, span = sequence.predicted_tokens(1)
    assert predicted.tolist() == [2, 3, 4] and span.tolist() == [0, 1, 2]


def test_spans_that_touch_a_role_header_or_hold_a_special_token_are_not_scored():
    chat = align_sequence(line_of(SEQUENCES[3]), [[], []])  # user|:|hallo| welt, its header is the bytes 0 to 5
    middle = Sequence("a b c d", ("a", " b", ("<eot>",), " c", " d"), ("a", " b", " c", " d"))
    broken = align_sequence(line_of(middle), [[2], []])

    assert chat.anchors.tolist() == [4, 5, 10, 15]
    assert chat.scored.tolist() == [False, True, True]
    assert broken.scored.tolist() == [True, False, True]
    assert broken.predicted_tokens(0)[0].tolist() == [1, 4], "no token of the span in between"
    assert broken.predicted_tokens(1)[0].tolist() == [1, 3]


def test_every_corpus_part_gives_as_many_sequences_spread_over_it(tmp_path):
    plain = ("go", " on")
    sequences = tuple(
        Sequence("go on", plain, plain, corpus="small" if number >= 8 else "large", held_out=number != 0)
        for number in range(10)
    )
    store = tiny_store(tmp_path / "store", {}, sequences=sequences)

    chosen = aligned_sequences(store, [[], []], 5)

    assert [sequence.sequence for sequence in chosen] == [1, 3, 5, 8, 9], "0 was trained on; large gives one more"
    assert [sequence.corpus for sequence in chosen] == ["large"] * 3 + ["small"] * 2
    assert aligned_sequences(store, [[], []], 1)[0].sequence == 1
    assert all(np.array_equal(sequence.anchors, [2, 5]) for sequence in chosen)
