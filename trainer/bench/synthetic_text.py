"""Generates sequences of random words with the tokens of two sources, as a harvest stores them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts, concatenated_ranges, read_texts, string_array

ALPHABETS = ("abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщыэюя", "的一是在不了有和人这中大为上个国我以要他")
"""Latin for most words; Cyrillic and Chinese for the rest, because pages take longer to render them."""
SHARES = (0.8, 0.12, 0.08)
VOCABULARY = 20_000
MAX_LETTERS = 10
"""Most letters in a word."""
CHARACTERS_PER_TOKEN = (5, 10)
"""Longest token of each source; the second is a multiple of the first, so that each of its tokens ends at an anchor."""
CORPORA = ("encyclopaedia", "chats")


@dataclass(frozen=True)
class Vocabulary:
    """Words with a leading space, and how each source tokenises them. Axis V: words."""

    words: tuple[str, ...]

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Vocabulary":
        """VOCABULARY distinct words of 1 to MAX_LETTERS letters."""
        words: dict[str, None] = {}
        while len(words) < VOCABULARY:
            alphabets = rng.choice(len(ALPHABETS), VOCABULARY, p=SHARES).tolist()
            lengths = rng.integers(1, MAX_LETTERS + 1, VOCABULARY).tolist()
            letters = rng.integers(0, 1 << 16, (VOCABULARY, MAX_LETTERS)).tolist()
            for alphabet, length, word in zip(alphabets, lengths, letters, strict=True):
                characters = ALPHABETS[alphabet]
                words[" " + "".join(characters[letter % len(characters)] for letter in word[:length])] = None
        return cls(tuple(words)[:VOCABULARY])

    @cached_property
    def array(self) -> pa.StringArray:
        """The words [V]."""
        return pa.array(self.words)

    def tokens(self, source: int) -> tuple[pa.StringArray, np.ndarray, np.ndarray]:
        """A source's tokens of all words, concatenated; the byte in its word where each ends; each word's first token.

        The last is int64 [V + 1].
        """
        size = CHARACTERS_PER_TOKEN[source]
        cut = [[word[at : at + size] for at in range(0, len(word), size)] for word in self.words]
        ends = [np.cumsum([len(piece.encode()) for piece in pieces]) for pieces in cut]
        begin = np.concatenate([[0], np.cumsum([len(pieces) for pieces in cut])])
        return pa.array([piece for pieces in cut for piece in pieces]), np.concatenate(ends), begin


def synthetic_text(sequences: int, words: int, rng: np.random.Generator) -> tuple[Texts, RowOrder, Vocabulary]:
    """Sequences of `words` words each, of Zipf-like frequency, with a row wherever tokens of both sources end."""
    table, row_order, vocabulary = synthetic_sequences(sequences, words, rng)
    return read_texts(table, 2), row_order, vocabulary


def synthetic_sequences(sequences: int, words: int, rng: np.random.Generator) -> tuple[pa.Table, RowOrder, Vocabulary]:
    """The same, with the texts as the table of sequences.parquet."""
    vocabulary = Vocabulary.random(rng)
    weight = 1 / (10 + np.arange(VOCABULARY))
    chosen = rng.choice(VOCABULARY, sequences * words, p=weight / weight.sum())
    sizes = np.array([len(word.encode()) for word in vocabulary.words])[chosen]
    starts = np.cumsum(sizes) - sizes  # of each word, in all text
    text_start = np.concatenate([starts[::words], [sizes.sum()]])
    in_text = starts - np.repeat(text_start[:-1], words)
    lists, ends = zip(*(_tokens(vocabulary, source, chosen, in_text, words) for source in (0, 1)), strict=True)
    flat = vocabulary.array.take(pa.array(chosen))
    data = np.frombuffer(flat.buffers()[2], np.uint8)[: sizes.sum()]
    table = pa.table(
        {
            "sequence": np.arange(sequences, dtype=np.int32),
            "document": np.arange(sequences, dtype=np.int32) // 2,
            "corpus": pa.array(CORPORA).take(pa.array(np.arange(sequences) // 2 % len(CORPORA))),
            "held_out": np.arange(sequences) % 20 == 0,
            "text": string_array(data, text_start),
            "template_spans": pa.array(
                [[]] * sequences, pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))
            ),
            "tokens": _by_sequence(lists),
        }
    )
    row_order = RowOrder(np.repeat(np.arange(sequences, dtype=np.int32), np.diff(lists[1].offsets)), ends[1], None)
    return table, row_order, vocabulary


def _tokens(
    vocabulary: Vocabulary, source: int, chosen: np.ndarray, in_text: np.ndarray, words: int
) -> tuple[pa.ListArray, np.ndarray]:
    """A source's tokens per sequence, and the byte of its text where each ends, int32 [tokens]."""
    pieces, ends, begin = vocabulary.tokens(source)
    at, start = concatenated_ranges(begin[chosen], np.diff(begin)[chosen])
    end = (np.repeat(in_text, np.diff(start)) + ends[at]).astype(np.int32)
    token = pa.StructArray.from_arrays([pieces.take(pa.array(at)), pa.array(end)], ["text", "byte_end"])
    offsets = np.concatenate([start[:-1:words], start[-1:]]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), token), end


def _by_sequence(lists: tuple[pa.ListArray, ...]) -> pa.ListArray:
    """Groups the sources' token lists by sequence."""
    sources, sequences = len(lists), len(lists[0])
    order = np.arange(sources * sequences).reshape(sources, sequences).T.ravel()
    inner = pa.concat_arrays(lists).take(pa.array(order))
    return pa.ListArray.from_arrays(pa.array(np.arange(sequences + 1, dtype=np.int32) * sources), inner)
