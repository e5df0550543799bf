"""Maps next-token predictions to outcomes that two models share: common tokens, or else the next byte.

Models with different tokenizers share no tokens, but at an anchor both predict the next byte: its probability is the
sum over all tokens that begin with it. That is a common event space for any two models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.reading.alignment import is_byte_level

NO_TEXT = 256
"""Class of tokens without text: special tokens, and rows of the unembedding without a token."""
CLASSES = 257
WORD_MARK = "▁"
"""SentencePiece's character for a space."""
ONE_VOCABULARY = 0.9
"""Vocabularies count as one when at least this share of the smaller one's ids means the same token in both."""


@dataclass(frozen=True)
class OutcomeSpace:
    """Maps one model's predictions over tokens to predictions over the pair's outcomes. Axes: V tokens, K outcomes."""

    kind: Literal["token", "byte"]
    index: Tensor
    """`token`: ids of the tokens that both vocabularies have, int64 [K]. `byte`: class of every token, int64 [V]."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of the outcomes, fp32 [n, K], from those of all tokens, fp32 [n, V]."""
        index = self.index.to(tokens.device)
        if self.kind == "token":
            return tokens[:, index].log_softmax(dim=1)
        classes = torch.full((tokens.shape[1],), NO_TEXT, device=tokens.device)
        classes[: len(index)] = index[: tokens.shape[1]]
        summed = torch.zeros(len(tokens), CLASSES, device=tokens.device)
        summed.scatter_add_(1, classes.expand_as(tokens), tokens.exp())
        return summed.clamp_min(torch.finfo(torch.float32).tiny).log()


def pair_outcomes(here: Any, there: Any) -> tuple[OutcomeSpace, OutcomeSpace] | None:
    """Common outcomes of two models with these fast tokenizers: tokens with one vocabulary, bytes otherwise.

    None when the tokens of one of them do not spell bytes.
    """
    both = shared_ids(here.get_vocab(), there.get_vocab())
    if both is not None:
        return OutcomeSpace("token", both), OutcomeSpace("token", both)
    first, second = first_bytes(here), first_bytes(there)
    if first is None or second is None:
        return None
    return OutcomeSpace("byte", first), OutcomeSpace("byte", second)


def shared_ids(here: Mapping[str, int], there: Mapping[str, int]) -> Tensor | None:
    """Ids of the same token in both vocabularies, increasing [K]; None when fewer than ONE_VOCABULARY of them agree."""
    ids = sorted(number for token, number in here.items() if there.get(token) == number)
    if len(ids) < ONE_VOCABULARY * min(len(here), len(there)):
        return None
    return torch.tensor(ids)


def first_bytes(tokenizer: Any) -> Tensor | None:
    """First byte of each token's text, or NO_TEXT, int64 [V]; None where tokens do not determine the bytes.

    Tokens of byte-level BPE spell bytes; those of SentencePiece spell characters, a space as `▁`, or one byte as
    `<0x41>`. WordPiece omits spaces, so its tokens do not determine the next byte.
    """
    vocabulary = tokenizer.get_vocab()
    byte_level = is_byte_level(tokenizer)
    if not byte_level and not any(token.startswith(WORD_MARK) for token in vocabulary):
        return None
    byte_of_token = [NO_TEXT] * (max(vocabulary.values()) + 1)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    byte_of_character = _byte_of_character() if byte_level else {}
    for token, number in vocabulary.items():
        if number in special or not token:
            continue
        if number in added:
            byte_of_token[number] = NO_TEXT if added[number].special else token.encode()[0]
        elif byte_level:
            byte_of_token[number] = byte_of_character.get(token[0], NO_TEXT)
        else:
            byte_of_token[number] = _first_sentencepiece_byte(token)
    return torch.tensor(byte_of_token)


def _first_sentencepiece_byte(token: str) -> int:
    """First byte of a SentencePiece token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return int(token[3:5], 16)
    return token.replace(WORD_MARK, " ").encode("utf-8", "surrogatepass")[0]


def _byte_of_character() -> dict[str, int]:
    """The byte of each character of byte-level BPE: printable bytes are themselves, the others chr(256) and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}
