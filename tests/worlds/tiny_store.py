"""The smallest activation store with text: five sequences, two tokenizations, four concepts, and a crosscoder for them.

Feature c fires exactly on the rows where concept c was put, with exactly the amplitude it was given: concepts 0 and 1
are in both sources, 2 only in `left`, 3 only in `right`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

WIDTHS = {"left": 4, "right": 5}
FEATURES = 4
SHARD = 8
"""Rows per shard."""

RowPosition = tuple[int, int]
"""A sequence and the byte of its text where a row ends."""


@dataclass(frozen=True)
class Sequence:
    """A text with its tokens in both sources; a token in a tuple of one stands on no byte of the text."""

    text: str
    left: tuple[str | bytes | tuple[str], ...]
    right: tuple[str | bytes | tuple[str], ...]
    corpus: str = "wiki"
    document: int = 0
    held_out: bool = False
    document_group: int | None = None
    """Its document where there is none."""
    template: tuple[tuple[int, int], ...] = ()


SEQUENCES = (
    Sequence(
        "the cat sat on the mat",
        ("the", " cat", " sat", " on", " the", " mat"),
        ("the c", "at", " sat on", " the", " mat"),
    ),
    Sequence(
        "a cat and a dog",
        (("<s>",), "a", " cat", " and", " a", " dog"),
        ("a cat", " and", " a", " d", "og"),
        document=0,
    ),
    Sequence("dog dog cat", ("dog", " dog", " cat"), ("dog", " dog", " cat"), document=1, held_out=True),
    Sequence(
        "user:hallo welt",
        (("<|user|>",), "user", ":", "hallo", " welt", ("<|end|>",)),
        ("user", ":", "hal", "lo", " w", "elt"),
        corpus="chat",
        document=2,
        template=((0, 5),),
    ),
    # Both byte-level: the four bytes of the test tube are tokens of their own.
    Sequence(
        "go \U0001f9ea go",
        ("go", " ", b"\xf0\x9f", b"\xa7", b"\xaa", " go"),
        ("go ", b"\xf0\x9f", b"\xa7\xaa", " go"),
        document=3,
    ),
)


def tokens(pieces: tuple[str | bytes | tuple[str], ...]) -> list[dict[str, str | int]]:
    """Tokens as sequences.parquet holds them: text and byte end, -1 for a token on no byte."""
    result: list[dict[str, str | int]] = []
    end = 0
    for piece in pieces:
        if isinstance(piece, tuple):
            result.append({"text": piece[0], "byte_end": -1})
            continue
        data = piece if isinstance(piece, bytes) else piece.encode()
        end += len(data)
        result.append({"text": data.decode(errors="replace"), "byte_end": end})
    return result


def anchors(sequence: Sequence) -> list[int]:
    """Bytes where a token of both sources ends."""
    ends = [{token["byte_end"] for token in tokens(pieces)} for pieces in (sequence.left, sequence.right)]
    return sorted(int(end) for end in set.intersection(*ends) if int(end) >= 0)


def rows(sequences: tuple[Sequence, ...] = SEQUENCES) -> list[RowPosition]:
    """Every row of the store, in reading order."""
    return [(index, end) for index, sequence in enumerate(sequences) for end in anchors(sequence)]


def text_table(sequences: tuple[Sequence, ...] = SEQUENCES) -> pa.Table:
    """The texts as sequences.parquet holds them."""
    token = pa.struct([("text", pa.string()), ("byte_end", pa.int32())])
    span = pa.struct([("start", pa.int32()), ("end", pa.int32())])
    spans = [[{"start": start, "end": end} for start, end in sequence.template] for sequence in sequences]
    both = [[tokens(sequence.left), tokens(sequence.right)] for sequence in sequences]
    return pa.table(
        {
            "sequence": pa.array(range(len(sequences)), pa.int32()),
            "document": pa.array([sequence.document for sequence in sequences], pa.int32()),
            "document_group": pa.array(
                [one.document if one.document_group is None else one.document_group for one in sequences], pa.int32()
            ),
            "corpus": [sequence.corpus for sequence in sequences],
            "held_out": [sequence.held_out for sequence in sequences],
            "text": [sequence.text for sequence in sequences],
            "is_chat": [bool(sequence.template) for sequence in sequences],
            "template_spans": pa.array(spans, pa.list_(span)),
            "tokens": pa.array(both, pa.list_(pa.list_(token))),
            "token_ids": pa.array(
                [[list(range(len(one))) for one in pair] for pair in both], pa.list_(pa.list_(pa.int32()))
            ),
        }
    )


def tiny_store(
    path: Path,
    amplitudes: Mapping[tuple[int, int, int], float],
    *,
    sequences: tuple[Sequence, ...] = SEQUENCES,
    order: list[RowPosition] | None = None,
    with_texts: bool = True,
) -> ActivationStore:
    """Write and open a store in which (concept, sequence, byte end) has an amplitude; nothing is anywhere else.

    Amplitudes must be exact in bf16. `order` is the order of rows in the store, reading order when absent.
    """
    places = rows(sequences) if order is None else order
    left, right = torch.zeros(len(places), WIDTHS["left"]), torch.zeros(len(places), WIDTHS["right"])
    for (concept, sequence, end), amplitude in amplitudes.items():
        row = places.index((sequence, end))
        if concept != 3:
            left[row, concept] = amplitude / (1 if concept == 2 else 2)
        if concept != 2:
            right[row, concept] = amplitude / (1 if concept == 3 else 2)
    writer = StoreWriter(path, tuple(StoredSource(name, width, model=f"org/{name}") for name, width in WIDTHS.items()))
    columns = {
        "sequence": torch.tensor([sequence for sequence, _ in places], dtype=torch.int32),
        "position": torch.arange(len(places), dtype=torch.int32),
        "byte_end": torch.tensor([end for _, end in places], dtype=torch.int32),
    }
    activations = {"left": left.bfloat16(), "right": right.bfloat16()}
    for first in range(0, len(places), SHARD):
        part = slice(first, first + SHARD)
        where = {name: column[part] for name, column in columns.items()} if with_texts else {}
        writer.add({name: rows[part] for name, rows in activations.items()}, where, "train")
    writer.finish(text_table(sequences) if with_texts else None, {})
    return ActivationStore.open(path)


def tiny_crosscoder() -> Crosscoder:
    """Four features that read the four concepts; decoder norms (1, 1), (3, 1), (2, none), (none, 2)."""
    groups = (
        Group("shared", 2, 0, ("left", "right"), ("left", "right")),
        Group("left", 1, 2, ("left",), ("left",)),
        Group("right", 1, 3, ("right",), ("right",)),
    )
    left, right = torch.eye(4), torch.eye(4, 5)
    weights = {
        "encoder.left.shared": left[:2],
        "encoder.right.shared": right[:2],
        "encoder.left.left": left[2:3],
        "encoder.right.right": right[3:4],
        "decoder.left.shared": left[:2] * torch.tensor([[1.0], [3.0]]),
        "decoder.right.shared": right[:2].clone(),
        "decoder.left.left": left[2:3] * 2,
        "decoder.right.right": right[3:4] * 2,
        "encoder_bias.shared": torch.zeros(2),
        "encoder_bias.left": torch.zeros(1),
        "encoder_bias.right": torch.zeros(1),
        "decoder_bias.left": torch.zeros(4),
        "decoder_bias.right": torch.zeros(5),
    }
    normaliser = {name: Normaliser(torch.zeros(width), 1.0) for name, width in WIDTHS.items()}
    return Crosscoder(
        WIDTHS, groups, weights, normaliser, {name: torch.tensor(0.25) for name in ("shared", "left", "right")}
    )
