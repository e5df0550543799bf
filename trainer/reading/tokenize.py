"""Runs every source's tokenizer on documents and maps token ends to the canonical text.

A chat model reads its template around the same contents. Template tokens have no byte end in the canonical text,
except the last one of each role header.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from trainer.corpus.document import Document
from trainer.corpus.rendering import RenderedDocument, render_document
from trainer.reading.alignment import NO_END, TokenizedText, byte_offsets, encode_all
from trainer.reading.sequences import TokenizedDocument

CHARACTERS_PER_TOKEN = 12
"""A document is tokenized up to this many characters per token wanted; the rest would not be used."""
DOCUMENTS_PER_BATCH = 32


@dataclass(frozen=True)
class SourceTokenizer:
    """A source's tokenizer with its settings."""

    tokenizer: Any
    use_template: bool
    vocabulary: int | None = None
    """Token ids that the model has embeddings for; a text ends before the first token beyond. None: all."""


def tokenize_documents(
    documents: Iterable[Document], sources: Sequence[SourceTokenizer], *, tokens: int
) -> Iterator[TokenizedDocument]:
    """Yield every document tokenized for every source; sources with equal tokenizers share the work.

    Only the first `tokens` * CHARACTERS_PER_TOKEN characters of a document are tokenized.
    """
    first_of = _first_equal(sources)
    stream = iter(documents)
    while batch := list(islice(stream, DOCUMENTS_PER_BATCH)):
        limit = tokens * CHARACTERS_PER_TOKEN
        by_tokenizer = {first: _tokenize(batch, sources[first], limit) for first in set(first_of)}
        for index, document in enumerate(batch):
            yield TokenizedDocument(
                document=document.number,
                corpus=document.corpus,
                held_out=document.held_out,
                group=document.group,
                is_chat=document.messages is not None,
                text=document.text,
                template_spans=tuple((span.start, span.end) for span in document.template_spans),
                tokenized=tuple(by_tokenizer[first][index][0] for first in first_of),
                plain_because=tuple(by_tokenizer[first][index][1] for first in first_of),
            )


def _first_equal(sources: Sequence[SourceTokenizer]) -> list[int]:
    """For each source, the index of the first source that tokenizes in the same way."""
    keys = [
        (s.tokenizer.backend_tokenizer.to_str(), s.use_template and s.tokenizer.chat_template, s.vocabulary)
        for s in sources
    ]
    return [keys.index(key) for key in keys]


def _tokenize(
    documents: Sequence[Document], source: SourceTokenizer, characters: int
) -> list[tuple[TokenizedText, str | None]]:
    """Every document tokenized, and why it was not rendered by a template that was asked for."""
    rendered = [render_document(document, source.tokenizer, source.use_template) for document in documents]
    tokenized = encode_all(source.tokenizer, [chat.text[:characters] for chat in rendered])
    return [
        (_to_canonical(_known_part(one, source.vocabulary), chat), chat.fallback_reason)
        for one, chat in zip(tokenized, rendered, strict=True)
    ]


def _known_part(tokenized: TokenizedText, vocabulary: int | None) -> TokenizedText:
    """The tokens before the first one that the model has no embedding for, such as a placeholder for an image."""
    beyond = np.flatnonzero(tokenized.ids >= vocabulary) if vocabulary is not None else np.empty(0, np.int64)
    return TokenizedText(*(part[: beyond[0]] for part in tokenized)) if len(beyond) else tokenized


def _to_canonical(tokenized: TokenizedText, rendered: RenderedDocument) -> TokenizedText:
    """Map byte ends in the rendered text to byte ends in the canonical text."""
    skip = int(rendered.begins_with_bos)
    ids, ends = tokenized.ids[skip:], tokenized.ends[skip:]
    if not rendered.templated:
        return TokenizedText(ids, ends)
    byte_of = byte_offsets(rendered.text)
    canonical_ends = np.full_like(ends, NO_END)
    for span in rendered.shared_spans:
        start, end = byte_of[span.start_char], byte_of[span.end_char]
        inside = (ends > start) & (ends <= end)
        canonical_ends[inside] = ends[inside] - start + span.start_byte
    for header_end in rendered.header_ends:
        canonical_ends[ends == byte_of[header_end.end_char]] = header_end.end_byte
    return TokenizedText(ids, canonical_ends)
