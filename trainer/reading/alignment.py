"""Alignment: tokens of different tokenizers brought to common byte ends of one text.

For every tokenizer each token gets the byte of the UTF-8 text where it ends. An anchor is a byte at
which a token of *every* source ends; a row is the activations of the tokens that end there. Because
anchors are an intersection of sets, alignment resynchronises by itself after any divergence.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

NO_END = -1
"""Byte end of a token that completes no byte of the text: special, empty, or inside a character it shares."""

Ends = NDArray[np.int64]


class Encoded(NamedTuple):
    """One text as one tokenizer sees it."""

    ids: NDArray[np.int64]
    """Token ids [tokens]."""
    ends: Ends
    """Byte of the text where each token ends [tokens], or NO_END; increasing where it is not NO_END."""


class FastTokenizer(Protocol):
    """What alignment needs of a transformers fast tokenizer."""

    backend_tokenizer: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenize texts; gives lists under `input_ids` and `offset_mapping`."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Strings of the vocabulary."""
        ...


def encode_all(tokenizer: FastTokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokens of each text without added special tokens, and the byte where each ends.

    Offsets of fast tokenizers count characters of the original text, whatever the normaliser did to it. Tokens
    that share a character (byte fallback, byte-level BPE) get the ends of their own bytes.
    """
    # Not verbose: texts are longer than a model's context on purpose, they are cut afterwards.
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    batch = tokenizer(list(texts), add_special_tokens=False, **options)
    return [
        _encoded(tokenizer, text, ids, offsets)
        for text, ids, offsets in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def encode(tokenizer: FastTokenizer, text: str) -> Encoded:
    """Tokens of one text; see `encode_all`."""
    return encode_all(tokenizer, [text])[0]


def _encoded(tokenizer: FastTokenizer, text: str, token_ids: list[int], offsets: list[tuple[int, int]]) -> Encoded:
    ids = np.asarray(token_ids, dtype=np.int64)
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    byte_of = byte_offsets(text)
    starts, ends = byte_of[spans[:, 0]], byte_of[spans[:, 1]]
    _split_shared_spans(tokenizer, ids, starts, ends)
    ends[spans[:, 0] == spans[:, 1]] = NO_END
    return Encoded(ids, _strictly_increasing(ends))


def byte_offsets(text: str) -> NDArray[np.int64]:
    """Byte at which each character of a text begins, and the length of the whole at the end [characters + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def anchors(ends: Sequence[Ends]) -> Ends:
    """Bytes at which a token of every source ends, increasing [anchors]."""
    return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), [e[e != NO_END] for e in ends])


def possible_anchors(ends: Sequence[Ends]) -> int:
    """How many anchors there could be at most: the ends of the source that has fewest."""
    return min(int((e != NO_END).sum()) for e in ends)


def positions(ends: Ends, at: Ends) -> NDArray[np.int64]:
    """Position of the token that ends at each of these bytes [anchors]; every byte must be an end."""
    real = np.flatnonzero(ends != NO_END)
    return real[np.searchsorted(ends[real], at)]


def _strictly_increasing(ends: Ends) -> Ends:
    """Keep, of tokens with one and the same end, the first; drop an end that goes back."""
    known = np.where(ends == NO_END, -1, ends)
    before = np.concatenate([[0], np.maximum.accumulate(known)[:-1]])
    return np.where(known > np.maximum(before, 0), ends, NO_END)


def _split_shared_spans(tokenizer: FastTokenizer, ids: NDArray[np.int64], starts: Ends, ends: Ends) -> None:
    """Give tokens whose spans overlap the ends of their own bytes, in place.

    Where their bytes do not add up to the span (a normaliser rewrote the character), only the last
    token of the run has an end, because only it is known to complete the character.
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
        own = starts[first] + np.cumsum([_byte_length(token, byte_level) for token in tokens])
        begin, end = starts[first], ends[last]
        leading = own[-1] - end  # a word-boundary mark that is not in the text
        if own[-1] != end and leading in (1, 3) and tokens[0].startswith(("▁", "Ġ")):
            own = own - leading
        if own[-1] == end and bool((own >= begin).all()):
            ends[first : last + 1] = own
        else:
            ends[first:last] = NO_END


def is_byte_level(tokenizer: FastTokenizer) -> bool:
    """Whether the tokens' strings spell bytes, as in GPT-2."""
    return "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)


def _byte_length(token: str, byte_level: bool) -> int:
    """Bytes of text that a token's string stands for, read as byte-level BPE, byte fallback or plain text."""
    if byte_level:
        return len(token)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("▁", " ").encode("utf-8", "surrogatepass"))
