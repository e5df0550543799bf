"""Every emitted pair of tokens ends at the same byte of the same text, for five kinds of tokenizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds import tiny_models
from trainer.reading.alignment import NO_END, anchors, byte_offsets, encode, positions, possible_anchors

KINDS = ("byte_level_bpe", "llama_sentencepiece", "gemma_style", "wordpiece", "unigram")
LOSSLESS = ("byte_level_bpe", "llama_sentencepiece", "gemma_style")
"""Tokenizers without a normaliser that rewrites text, whose tokens' own bytes must spell it."""

HARD = [
    "family: 👩‍👩‍👧‍👦 flag: 🇩🇪 skin: 👍🏽",
    "中文字符,日本語テキスト、한국어",
    "العربية من اليمين إلى اليسار",
    "e\u0301 a\u0308 ñ n\u0303 combining",
    "line one\r\nline two\r\n\r\n\ttabbed\tcolumns",
    "“smart quotes” – dashes — and ‘single’ …",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f9ea \u200b zero width \ufeff mark",
    "  leading and trailing spaces   ",
    "ﬁ ligature ½ fraction Ⅷ ㎏",
]
TEXTS = st.one_of(st.sampled_from(HARD), st.text(st.characters(codec="utf-8"), max_size=60)).map(
    lambda t: t.replace("\x00", "")
)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: getattr(tiny_models, kind)() for kind in KINDS}


def bytes_so_far(tokenizer, ids) -> bytes:
    """Bytes that tokens spell, read from their strings by the rules of their kind: an independent way to an end."""
    table = {character: byte for byte, character in _gpt2_alphabet().items()}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    spelled = b""
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        if byte_level:
            spelled += bytes(table[character] for character in token)
        elif token.startswith("<0x"):
            spelled += bytes([int(token[3:5], 16)])
        else:
            spelled += token.replace("▁", " ").encode()
    return spelled


def _gpt2_alphabet() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_an_end_is_the_number_of_bytes_that_the_tokens_up_to_it_spell(tokenizers, text):
    for kind in LOSSLESS:
        tokenizer = tokenizers[kind]
        ids, ends = encode(tokenizer, text)
        for position in np.flatnonzero(ends != NO_END):
            spelled = bytes_so_far(tokenizer, ids[: position + 1])
            # SentencePiece may put a space in front of the text that is not in it.
            assert spelled.removeprefix(b" " * (len(spelled) - int(ends[position]))) == text.encode()[: ends[position]]


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_every_anchor_is_an_end_in_every_source_and_its_position_says_which(tokenizers, text):
    encoded = [encode(tokenizers[kind], text) for kind in KINDS]
    common = anchors([e.ends for e in encoded])

    assert all(common[:-1] < common[1:]) and all(0 < end <= len(text.encode()) for end in common)
    for one in encoded:
        assert (one.ends[positions(one.ends, common)] == common).all()
    assert set(common) == set.intersection(*({end for end in e.ends if end != NO_END} for e in encoded))
    assert len(common) <= possible_anchors([e.ends for e in encoded])


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_ends_never_go_back_and_never_repeat(tokenizers, text):
    for kind in KINDS:
        real = [end for end in encode(tokenizers[kind], text).ends if end != NO_END]
        assert real == sorted(set(real))


def test_tokens_that_share_a_character_have_the_ends_of_their_own_bytes(tokenizers):
    text = "a👍b"
    ends = {kind: encode(tokenizers[kind], text).ends for kind in LOSSLESS}

    # The thumb is four bytes, and no merge of these vocabularies joins any of them.
    for kind in LOSSLESS:
        assert {1, 2, 3, 4, 5, 6} >= {int(end) for end in ends[kind] if end != NO_END} >= {5, 6}
    assert {2, 3, 4} <= {int(end) for end in ends["gemma_style"]}


def test_alignment_finds_its_way_back_after_a_stretch_without_a_common_end(tokenizers):
    text = "plain words 👩‍👩‍👧‍👦 and plain words again"
    common = anchors([encode(tokenizers[kind], text).ends for kind in KINDS])

    after = len("plain words 👩‍👩‍👧‍👦".encode())
    assert (common > after).sum() >= 3
    assert common[-1] == len(text.encode())


def test_equal_tokenizers_align_everywhere(tokenizers):
    ends = encode(tokenizers["gemma_style"], "the same text, twice 👍").ends

    assert len(anchors([ends, ends])) == possible_anchors([ends, ends]) == (ends != NO_END).sum()


def test_byte_offsets_count_utf8_bytes():
    assert byte_offsets("aé€👍").tolist() == [0, 1, 3, 6, 10]
    assert byte_offsets("").tolist() == [0]
