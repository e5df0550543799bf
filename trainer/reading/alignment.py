"""Maps the tokens of different tokenizers to common byte ends of one text.

Every token gets the byte of the UTF-8 text where it ends. An anchor is a byte at which a token of *every* source
ends; a row is the activations of the tokens that end there. Because anchors are an intersection of sets, alignment
resynchronises by itself after any divergence.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

NO_END = -1
"""Byte end of a token without one: special, empty, or inside a character it shares with later tokens."""

Ends = NDArray[np.int64]

_BYTES: WeakKeyDictionary[Any, dict[int, bytes]] = WeakKeyDictionary()
"""Bytes of a tokenizer's tokens; see `_bytes_of`."""


class TokenizedText(NamedTuple):
    """Tokens of one text by one tokenizer."""

    ids: NDArray[np.int64]
    """Token ids [tokens]."""
    ends: Ends
    """Byte of the text where each token ends [tokens], or NO_END; increasing where it is not NO_END."""


class FastTokenizer(Protocol):
    """The parts of a transformers fast tokenizer that alignment uses."""

    backend_tokenizer: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenize texts; returns lists under `input_ids` and `offset_mapping`."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The tokens' strings in the vocabulary."""
        ...


def encode_all(tokenizer: FastTokenizer, texts: Sequence[str]) -> list[TokenizedText]:
    """Tokenize texts without adding special tokens, and compute the byte where each token ends.

    Tokens of byte-level tokenizers end where their own bytes do. Offsets of others count characters of the original
    text, before normalisation; tokens that share a character (byte fallback) get the ends of their own bytes.
    """
    # Without verbose=False, a text longer than the model's context gives a warning; texts are cut afterwards.
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    batch = tokenizer(list(texts), add_special_tokens=False, **options)
    return [
        _tokenized(tokenizer, text, ids, offsets)
        for text, ids, offsets in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def encode(tokenizer: FastTokenizer, text: str) -> TokenizedText:
    """Tokenize one text; see `encode_all`."""
    return encode_all(tokenizer, [text])[0]


def _tokenized(
    tokenizer: FastTokenizer, text: str, token_ids: list[int], offsets: list[tuple[int, int]]
) -> TokenizedText:
    ids = np.asarray(token_ids, dtype=np.int64)
    if is_byte_level(tokenizer) and (own := _own_ends(tokenizer, text, token_ids)) is not None:
        return TokenizedText(ids, own)
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    byte_of = byte_offsets(text)
    starts, ends = byte_of[spans[:, 0]], byte_of[spans[:, 1]]
    _split_shared_spans(tokenizer, ids, starts, ends)
    ends[spans[:, 0] == spans[:, 1]] = NO_END
    return TokenizedText(ids, _strictly_increasing(ends))


def byte_offsets(text: str) -> NDArray[np.int64]:
    """Byte offset of each character in UTF-8, then the length of the text in bytes [characters + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def anchors(ends: Sequence[Ends]) -> Ends:
    """Bytes at which a token of every source ends, increasing [anchors]."""
    return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), [e[e != NO_END] for e in ends])


def possible_anchors(ends: Sequence[Ends]) -> int:
    """Upper bound of the number of anchors: the smallest number of byte ends of any source."""
    return min(int((e != NO_END).sum()) for e in ends)


def positions(ends: Ends, at: Ends) -> NDArray[np.int64]:
    """Position of the token that ends at each of the given bytes [anchors]; every byte must be an end."""
    real = np.flatnonzero(ends != NO_END)
    return real[np.searchsorted(ends[real], at)]


def _own_ends(tokenizer: FastTokenizer, text: str, token_ids: list[int]) -> Ends | None:
    """Ends of a byte-level tokenizer's tokens by the bytes they stand for; None if these do not spell the text.

    They do not where a normaliser changed the text or a space was put before it; then the reported spans are used.
    """
    pieces = _bytes_of(tokenizer)
    try:
        spelt = [pieces[token] for token in token_ids]
    except KeyError:
        return None
    if b"".join(spelt) != text.encode("utf-8", "surrogatepass"):
        return None
    return _strictly_increasing(np.cumsum(np.fromiter(map(len, spelt), np.int64, len(spelt))))


def _bytes_of(tokenizer: FastTokenizer) -> dict[int, bytes]:
    """The bytes that each token of a byte-level tokenizer stands for, by id; computed once per tokenizer."""
    known = _BYTES.get(tokenizer)
    if known is None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode  # slow import, here loaded already

        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        known = {number: token.content.encode() for number, token in added.items()}
        for token, number in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).items():
            if number not in known and all(character in byte_of for character in token):
                known[number] = bytes(byte_of[character] for character in token)
        _BYTES[tokenizer] = known
    return known


def _strictly_increasing(ends: Ends) -> Ends:
    """Replace ends that repeat or precede an earlier end by NO_END."""
    known = np.where(ends == NO_END, -1, ends)
    before = np.concatenate([[0], np.maximum.accumulate(known)[:-1]])
    return np.where(known > np.maximum(before, 0), ends, NO_END)


def _split_shared_spans(tokenizer: FastTokenizer, ids: NDArray[np.int64], starts: Ends, ends: Ends) -> None:
    """Set the ends of tokens with overlapping spans to the ends of their own bytes, in place.

    If their bytes do not add up to the span (a normaliser changed the character), only the last token of the group
    keeps an end, because only that one is known to complete the character.
    """
    overlaps = np.flatnonzero((starts[1:] < ends[:-1]) & (ends[1:] > starts[1:]))
    done = -1
    byte_level = bool(len(overlaps)) and is_byte_level(tokenizer)
    for first in overlaps.tolist():
        if first <= done:
            continue
        last = first + 1
        while last + 1 < len(ids) and starts[last + 1] < ends[last] and ends[last + 1] > starts[last + 1]:
            last += 1
        done = last
        tokens = tokenizer.convert_ids_to_tokens(ids[first : last + 1].tolist())
        own_ends = starts[first] + np.cumsum([_byte_length(token, byte_level) for token in tokens])
        begin, end = starts[first], ends[last]
        excess = own_ends[-1] - end  # length of a word-boundary mark that is not in the text
        if own_ends[-1] != end and excess in (1, 3) and tokens[0].startswith(("▁", "Ġ")):
            own_ends = own_ends - excess
        if own_ends[-1] == end and bool((own_ends >= begin).all()):
            ends[first : last + 1] = own_ends
        else:
            ends[first:last] = NO_END


def is_byte_level(tokenizer: FastTokenizer) -> bool:
    """Whether each character of a token's string encodes one byte, as in GPT-2."""
    return "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)


def _byte_length(token: str, byte_level: bool) -> int:
    """Number of text bytes that a token's string encodes: byte-level BPE, byte fallback or plain text."""
    if byte_level:
        return len(token)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("▁", " ").encode("utf-8", "surrogatepass"))
