"""Readings: documents as every source reads them, tokenized, with byte ends in the canonical text.

A chat model reads its template around the same contents; tokens of the template end on no byte of the
canonical text, except the last one of each role header.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from trainer.corpus.document import Document
from trainer.corpus.rendering import RenderedChat, render_chat
from trainer.reading.alignment import NO_END, Encoded, byte_offsets, encode_all
from trainer.reading.sequences import Text

CHARACTERS_PER_TOKEN = 12
"""A document is tokenized up to this many characters per token wanted; more would be thrown away."""
DOCUMENTS_AT_ONCE = 32


@dataclass(frozen=True)
class Reader:
    """How one source reads documents."""

    tokenizer: Any
    bos: int | None
    """Token that must stand first."""
    use_template: bool


def read_all(documents: Iterable[Document], readers: Sequence[Reader], *, tokens: int) -> Iterator[Text]:
    """Every document, tokenized by every reader; readers with equal tokenizers share the work.

    At most about `tokens` tokens of a document are wanted.
    """
    kinds = _distinct(readers)
    stream = iter(documents)
    while some := list(islice(stream, DOCUMENTS_AT_ONCE)):
        by_kind = {kind: _encoded(some, readers[kind], tokens * CHARACTERS_PER_TOKEN) for kind in set(kinds)}
        for index, document in enumerate(some):
            yield Text(
                document=document.number,
                corpus=document.corpus,
                held_out=document.held_out,
                is_chat=document.messages is not None,
                text=document.text,
                template_spans=tuple((span.start, span.end) for span in document.template_spans),
                encoded=tuple(by_kind[kind][index] for kind in kinds),
            )


def _distinct(readers: Sequence[Reader]) -> list[int]:
    """Per reader, the first reader that reads exactly alike."""
    looks = [(r.tokenizer.backend_tokenizer.to_str(), r.use_template and r.tokenizer.chat_template) for r in readers]
    return [looks.index(look) for look in looks]


def _encoded(documents: Sequence[Document], reader: Reader, characters: int) -> list[Encoded]:
    rendered = [render_chat(document, reader.tokenizer, reader.use_template) for document in documents]
    encoded = encode_all(reader.tokenizer, [chat.text[:characters] for chat in rendered])
    return [_to_canonical(one, chat) for one, chat in zip(encoded, rendered, strict=True)]


def _to_canonical(encoded: Encoded, rendered: RenderedChat) -> Encoded:
    """Byte ends counted in the rendered text to byte ends in the canonical text."""
    skip = int(rendered.begins_with_bos)
    ids, ends = encoded.ids[skip:], encoded.ends[skip:]
    if not rendered.templated:
        return Encoded(ids, ends)
    byte_of = byte_offsets(rendered.text)
    out = np.full_like(ends, NO_END)
    for piece in rendered.pieces:
        start, end = byte_of[piece.start_char], byte_of[piece.end_char]
        inside = (ends > start) & (ends <= end)
        out[inside] = ends[inside] - start + piece.start_byte
    for mark in rendered.header_marks:
        out[ends == byte_of[mark.end_char]] = mark.end_byte
    return Encoded(ids, out)
