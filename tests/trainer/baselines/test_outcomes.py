"""The common outcomes of two models' predictions."""

import math

import pytest
import torch

from tests.worlds.tiny_models import byte_level_bpe, gemma_style, llama_sentencepiece, wordpiece
from trainer.baselines.outcomes import CLASSES, NO_TEXT, OutcomeSpace, first_bytes, pair_outcomes, shared_ids


@pytest.mark.parametrize("make", [byte_level_bpe, gemma_style], ids=["byte-level", "byte fallback"])
def test_a_token_begins_with_the_byte_that_its_decoded_text_begins_with(make):
    tokenizer = make()
    found = first_bytes(tokenizer).tolist()

    compared = 0
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if token not in tokenizer.all_special_ids and text and "\ufffd" not in text:
            assert found[token] == text.encode()[0], (token, text)
            compared += 1
    assert compared > 200


def test_bytes_spaces_and_special_tokens_are_known_by_their_names():
    sentencepiece, byte_level = llama_sentencepiece(), byte_level_bpe()
    found = first_bytes(sentencepiece)

    assert found[sentencepiece.convert_tokens_to_ids("<0xE4>")] == 0xE4
    assert found[sentencepiece.convert_tokens_to_ids("▁the")] == ord(" ")
    assert found[sentencepiece.convert_tokens_to_ids("<s>")] == NO_TEXT
    assert first_bytes(byte_level)[byte_level.convert_tokens_to_ids("Ċ")] == ord("\n")
    assert first_bytes(byte_level)[byte_level.convert_tokens_to_ids("<|im_end|>")] == NO_TEXT
    assert first_bytes(wordpiece()) is None, "its tokens do not say where spaces stand"


def test_probabilities_of_tokens_with_one_first_byte_add_up():
    classes = torch.tensor([65, 65, 66, NO_TEXT])
    tokens = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]]).log()  # the last one is a row that no token has

    found = OutcomeSpace("byte", classes)(tokens).exp()[0]

    assert found.shape == (CLASSES,)
    assert found[[65, 66, NO_TEXT]].tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert found.sum() == pytest.approx(1)


def test_tokens_that_only_one_model_has_are_left_out_and_the_rest_adds_up_to_one():
    tokens = torch.tensor([[0.4, 0.1, 0.5]]).log()

    found = OutcomeSpace("token", torch.tensor([0, 1]))(tokens)

    assert found[0].tolist() == pytest.approx([math.log(0.8), math.log(0.2)])


def test_vocabularies_are_one_when_nearly_all_ids_mean_the_same_tokens():
    base = {f"word{number}": number for number in range(20)}
    tuned = base | {"<|tool|>": 20}
    renamed = {("new" if number == 3 else token): number for token, number in base.items()}
    others = {token: 19 - number for token, number in base.items()}

    assert shared_ids(base, tuned).tolist() == list(range(20))
    assert shared_ids(base, renamed).tolist() == [number for number in range(20) if number != 3]
    assert shared_ids(base, others) is None


def test_one_vocabulary_is_compared_by_tokens_two_by_bytes_and_wordpiece_not_at_all():
    same = pair_outcomes(byte_level_bpe(), byte_level_bpe())
    different = pair_outcomes(byte_level_bpe(), gemma_style())

    assert [side.kind for side in same] == ["token", "token"]
    assert [side.kind for side in different] == ["byte", "byte"]
    assert pair_outcomes(byte_level_bpe(), wordpiece()) is None
