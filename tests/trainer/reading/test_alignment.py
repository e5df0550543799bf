"""Aligned tokens end at the same byte of the same text, for five kinds of tokenizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors

from tests.worlds import tiny_models
from trainer.models.tokenizer import load_tokenizer
from trainer.reading.alignment import NO_END, anchors, byte_offsets, encode, positions, possible_anchors
from trainer.reading.sequences_table import token_texts
from trainer.recipe.fitting import SourceRecipe

KINDS = ("byte_level_bpe", "llama_sentencepiece", "gemma_style", "wordpiece", "unigram")
LOSSLESS = ("byte_level_bpe", "llama_sentencepiece", "gemma_style")
"""Tokenizers whose normaliser does not rewrite text, so that their tokens' bytes spell the text."""

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


def decoded_bytes(tokenizer, ids) -> bytes:
    """Bytes that the tokens encode, decoded from their strings: an independent reference for byte ends."""
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
def test_a_byte_end_is_the_number_of_bytes_that_the_tokens_up_to_it_encode(tokenizers, text):
    for kind in LOSSLESS:
        tokenizer = tokenizers[kind]
        ids, ends = encode(tokenizer, text)
        for position in np.flatnonzero(ends != NO_END):
            spelled = decoded_bytes(tokenizer, ids[: position + 1])
            # SentencePiece may prepend a space that is not in the text.
            assert spelled.removeprefix(b" " * (len(spelled) - int(ends[position]))) == text.encode()[: ends[position]]


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_every_anchor_is_a_byte_end_in_every_source_and_positions_find_its_token(tokenizers, text):
    encoded = [encode(tokenizers[kind], text) for kind in KINDS]
    common = anchors([e.ends for e in encoded])

    assert all(common[:-1] < common[1:]) and all(0 < end <= len(text.encode()) for end in common)
    for one in encoded:
        assert (one.ends[positions(one.ends, common)] == common).all()
    assert set(common) == set.intersection(*({end for end in e.ends if end != NO_END} for e in encoded))
    assert len(common) <= possible_anchors([e.ends for e in encoded])


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_byte_ends_strictly_increase(tokenizers, text):
    for kind in KINDS:
        real = [end for end in encode(tokenizers[kind], text).ends if end != NO_END]
        assert real == sorted(set(real))


def test_tokens_that_share_a_character_have_the_ends_of_their_own_bytes(tokenizers):
    text = "a👍b"
    ends = {kind: encode(tokenizers[kind], text).ends for kind in LOSSLESS}

    # The emoji is four bytes, and no merge in these vocabularies joins any of them.
    for kind in LOSSLESS:
        assert {1, 2, 3, 4, 5, 6} >= {int(end) for end in ends[kind] if end != NO_END} >= {5, 6}
    assert {2, 3, 4} <= {int(end) for end in ends["gemma_style"]}


def test_alignment_resynchronises_after_a_stretch_without_a_common_end(tokenizers):
    text = "plain words 👩‍👩‍👧‍👦 and plain words again"
    common = anchors([encode(tokenizers[kind], text).ends for kind in KINDS])

    after = len("plain words 👩‍👩‍👧‍👦".encode())
    assert (common > after).sum() >= 3
    assert common[-1] == len(text.encode())


def test_equal_tokenizers_align_at_every_byte_end(tokenizers):
    ends = encode(tokenizers["gemma_style"], "the same text, twice 👍").ends

    assert len(anchors([ends, ends])) == possible_anchors([ends, ends]) == (ends != NO_END).sum()


def test_byte_offsets_count_utf8_bytes():
    assert byte_offsets("aé€👍").tolist() == [0, 1, 3, 6, 10]
    assert byte_offsets("").tolist() == [0]


def trimming(kind: str):
    """A byte-level tokenizer whose post-processor cuts white space off the spans that it reports."""
    tokenizer = tiny_models.byte_level_bpe()
    single = processors.ByteLevel(trim_offsets=True)
    tokenizer.backend_tokenizer.post_processor = {
        "byte level": single,
        "roberta": processors.RobertaProcessing(("<|im_end|>", 2), ("<|im_start|>", 1), trim_offsets=True),
        "sequence": processors.Sequence([single]),
    }[kind]
    return tokenizer


WHITE = ["a\n    b  c", "  x   y ", "\n\n\n", "\t\ttabs \r\n ", "if a:\n        return  b\n", *HARD]


@pytest.mark.parametrize("kind", ["byte level", "roberta", "sequence"])
@pytest.mark.parametrize("text", WHITE)
def test_trimmed_spans_change_no_end_of_a_byte_level_token(kind: str, text: str):
    trimmed, whole = encode(trimming(kind), text), encode(tiny_models.byte_level_bpe(), text)

    assert trimmed.ids.tolist() == whole.ids.tolist()
    assert trimmed.ends.tolist() == whole.ends.tolist()
    names = [""] * len(trimmed.ids)
    shown = "".join(token_texts(text.encode(), trimmed.ends, names))
    assert shown == text or "\ufffd" in shown
    assert trimmed.ends[-1] == len(text.encode())


@pytest.mark.parametrize("kind", ["byte level", "roberta", "sequence"])
def test_a_loaded_tokenizer_reports_whole_spans_also_where_a_normaliser_changes_the_text(tmp_path, kind: str):
    tiny_models.tiny_llama(tmp_path)
    tokenizer = trimming(kind)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(SourceRecipe(name="tiny", model=str(tmp_path), layer=0))
    text = "e\u0301  x\n    y"

    tokenized = encode(loaded, text)

    ends = tokenized.ends[tokenized.ends != NO_END].tolist()
    assert ends[-1] == len(text.encode())
    assert text.encode().index(b"x") in ends  # the end of the two spaces
