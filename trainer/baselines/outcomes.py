"""Outcomes: what two models' predictions are compared over, the next token of one vocabulary or else the next byte.

Models with different tokenizers share no tokens, but where a token of both has just ended, both say what byte comes
next: the sum over all tokens that begin with it. That is one set of events for any two models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.reading.alignment import is_byte_level

NO_TEXT = 256
"""Class of tokens that are no text: special ones, and rows of the unembedding that no token has."""
CLASSES = 257
WORD_MARK = "▁"
"""What SentencePiece writes for a space."""
ONE_VOCABULARY = 0.9
"""Vocabularies count as one when at least this share of the smaller one's ids stands for the same tokens in both."""


@dataclass(frozen=True)
class Outcomes:
    """How what one model of a pair expects of its own tokens becomes what it expects of the outcomes."""

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


def pair_outcomes(here: Any, there: Any) -> tuple[Outcomes, Outcomes] | None:
    """Outcomes for two models with these fast tokenizers, in this order; None when one of them does not spell bytes.

    Tokens where the tokenizers have one vocabulary, bytes otherwise.
    """
    both = shared_ids(here.get_vocab(), there.get_vocab())
    if both is not None:
        return Outcomes("token", both), Outcomes("token", both)
    first, second = first_bytes(here), first_bytes(there)
    if first is None or second is None:
        return None
    return Outcomes("byte", first), Outcomes("byte", second)


def shared_ids(here: Mapping[str, int], there: Mapping[str, int]) -> Tensor | None:
    """Ids that stand for the same token in both vocabularies, increasing [K]; None when they are too few to be one."""
    ids = sorted(number for token, number in here.items() if there.get(token) == number)
    if len(ids) < ONE_VOCABULARY * min(len(here), len(there)):
        return None
    return torch.tensor(ids)


def first_bytes(tokenizer: Any) -> Tensor | None:
    """First byte of the text that each token stands for, or NO_TEXT, int64 [V]; None where tokens do not spell text.

    Tokens of byte-level BPE spell bytes; those of SentencePiece spell characters, a space as `▁`, or one byte as
    `<0x41>`. WordPiece leaves spaces out, so its tokens do not say what byte comes next.
    """
    vocabulary = tokenizer.get_vocab()
    byte_level = is_byte_level(tokenizer)
    if not byte_level and not any(token.startswith(WORD_MARK) for token in vocabulary):
        return None
    found = torch.full((max(vocabulary.values()) + 1,), NO_TEXT)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    spelt = _byte_of_letter() if byte_level else {}
    for token, number in vocabulary.items():
        if number in special or not token:
            continue
        if number in added:
            found[number] = NO_TEXT if added[number].special else token.encode()[0]
        elif byte_level:
            found[number] = spelt.get(token[0], NO_TEXT)
        else:
            found[number] = _first_spelt(token)
    return found


def _first_spelt(token: str) -> int:
    """First byte of a SentencePiece token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return int(token[3:5], 16)
    return token.replace(WORD_MARK, " ").encode("utf-8", "surrogatepass")[0]


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for: printable ones for themselves, the rest from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}
