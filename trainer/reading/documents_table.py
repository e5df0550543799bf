"""Tokens: how the tokens of harvested sequences are written into the table of sequences."""

from collections.abc import Sequence as Many
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


def table_of(sequences: Many[Sequence], tokenizers: Many[Any], *, first: int) -> pa.Table:
    """One row per sequence, numbered from `first`; tokens and token ids per source in order."""
    rows = [_row(sequence, tokenizers, first + index) for index, sequence in enumerate(sequences)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def token_texts(text: bytes, ends: Ends, names: Many[str]) -> list[str]:
    """What each token shows: its part of the text, or its own name where it ends on no byte of it.

    A token that ends inside a character shows U+FFFD for the part of the character it has.
    """
    shown, before = [], 0
    for end, name in zip(ends.tolist(), names, strict=True):
        if end == NO_END:
            shown.append(name)
        else:
            shown.append(text[before:end].decode("utf-8", "replace"))
            before = end
    return shown


def _row(sequence: Sequence, tokenizers: Many[Any], number: int) -> dict[str, Any]:
    tokens = []
    for ids, ends, tokenizer in zip(sequence.ids, sequence.ends, tokenizers, strict=True):
        names = _names(tokenizer, ids, ends)
        texts = token_texts(sequence.text, ends, names)
        tokens.append([{"text": t, "byte_end": e} for t, e in zip(texts, ends.tolist(), strict=True)])
    return {
        "sequence": number,
        "document": sequence.document,
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
    """Decoded text of tokens that end on no byte of the text; empty for the others."""
    pairs = zip(ids.tolist(), ends, strict=True)
    return [str(tokenizer.decode([token])) if end == NO_END else "" for token, end in pairs]
