"""Builds the table of harvested sequences with their texts and tokens."""

from collections import abc
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.reading.alignment import NO_END, Ends
from trainer.reading.sequences import Sequence

TOKEN = pa.struct([("text", pa.string()), ("byte_end", pa.int32())])
SCHEMA = pa.schema(
    [
        ("sequence", pa.int32()),
        ("document", pa.int32()),
        ("document_group", pa.int32()),
        ("corpus", pa.string()),
        ("held_out", pa.bool_()),
        ("text", pa.string()),
        ("is_chat", pa.bool_()),
        ("template_spans", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))),
        ("possible", pa.int32()),
        ("anchors", pa.int32()),
        ("tokens", pa.list_(pa.list_(TOKEN))),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
    ]
)


def sequences_table(sequences: abc.Sequence[Sequence], tokenizers: abc.Sequence[Any], *, first: int) -> pa.Table:
    """One table row per sequence, numbered from `first`; tokens and token ids per source in order."""
    rows = [_row(sequence, tokenizers, first + index) for index, sequence in enumerate(sequences)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def token_texts(text: bytes, ends: Ends, names: abc.Sequence[str]) -> list[str]:
    """Display text of each token: its part of the text, or its name if it has no byte end.

    A part of a character is shown as U+FFFD.
    """
    texts, before = [], 0
    for end, name in zip(ends.tolist(), names, strict=True):
        if end == NO_END:
            texts.append(name)
        else:
            texts.append(text[before:end].decode("utf-8", "replace"))
            before = end
    return texts


def _row(sequence: Sequence, tokenizers: abc.Sequence[Any], number: int) -> dict[str, Any]:
    tokens = []
    for ids, ends, tokenizer in zip(sequence.ids, sequence.ends, tokenizers, strict=True):
        names = _names(tokenizer, ids, ends)
        texts = token_texts(sequence.text, ends, names)
        tokens.append([{"text": t, "byte_end": e} for t, e in zip(texts, ends.tolist(), strict=True)])
    return {
        "sequence": number,
        "document": sequence.document,
        "document_group": sequence.group,
        "corpus": sequence.corpus,
        "held_out": sequence.held_out,
        "text": sequence.text.decode("utf-8", "replace"),
        "is_chat": sequence.is_chat,
        "template_spans": [{"start": start, "end": end} for start, end in sequence.template_spans],
        "possible": sequence.possible,
        "anchors": len(sequence.anchors),
        "tokens": tokens,
        "token_ids": [ids.tolist() for ids in sequence.ids],
    }


def _names(tokenizer: Any, ids: np.ndarray[Any, Any], ends: Ends) -> list[str]:
    """Decoded text of tokens without a byte end; empty for the others."""
    pairs = zip(ids.tolist(), ends, strict=True)
    return [str(tokenizer.decode([token])) if end == NO_END else "" for token, end in pairs]
