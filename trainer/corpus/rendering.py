"""Renders a document as one source reads it, chats by its chat template, and maps it to the canonical text.

A chat model reads `<|im_start|>user` where the canonical text has `User: `. The contents are the same characters in
both, so byte ends inside them can be compared across sources. The text between contents cannot, except the end of a
role header, which every rendering has exactly once per message.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.corpus.document import Document, Message


class SharedSpan(NamedTuple):
    """A span of the rendered text (in characters) that equals a span of the canonical text (in bytes)."""

    start_char: int
    end_char: int
    start_byte: int
    end_byte: int


class HeaderEnd(NamedTuple):
    """The end of a role header in the rendered and in the canonical text.

    `end_char` is where the last template token before a content ends in the rendered text. `end_byte` is where the
    header's colon ends in the canonical text: most tokenizers join the space after it to the next word.
    """

    end_char: int
    end_byte: int


@dataclass(frozen=True)
class RenderedDocument:
    """A document as one source reads it."""

    text: str
    shared_spans: tuple[SharedSpan, ...]
    """In order; one span over the whole text if it is the canonical text."""
    header_ends: tuple[HeaderEnd, ...] = ()
    """One per message if a template was used; empty in a plain rendering, whose span includes the headers."""
    templated: bool = False
    begins_with_bos: bool = False
    """Whether the text begins with the tokenizer's BOS, so that tokenizing must not add another."""
    fallback_reason: str | None = None
    """Why a requested template was not used."""


def render_document(document: Document, tokenizer: Any, use_template: bool) -> RenderedDocument:
    """Render a document for a source with this tokenizer.

    With `use_template`, a chat is rendered by the tokenizer's chat template. If the template raises an error (because
    of a system role, or two turns of one role in a row) or changes a content, the rendering is plain and
    `fallback_reason` gives the cause. Plain text is never changed.
    """
    if not use_template or document.messages is None:
        return _plain(document)
    try:
        text = _apply_template(tokenizer, document.messages)
        offsets = _content_offsets(tokenizer, document.messages, text)
    # A template is a foreign program: it may raise any exception.
    except Exception as error:  # noqa: BLE001
        return _plain(document, fallback_reason=f"{type(error).__name__}: {error}"[:200])
    if offsets is None:
        return _plain(document, fallback_reason="the template changes the contents of messages")
    return _templated(document, text, offsets, tokenizer)


def _plain(document: Document, fallback_reason: str | None = None) -> RenderedDocument:
    span = SharedSpan(0, len(document.text), 0, len(document.text.encode()))
    return RenderedDocument(document.text, (span,), fallback_reason=fallback_reason)


def _templated(document: Document, text: str, offsets: list[int], tokenizer: Any) -> RenderedDocument:
    shared_spans = []
    header_ends = []
    for message, offset, header in zip(document.messages or (), offsets, document.template_spans, strict=True):
        size = len(message.content.encode())
        shared_spans.append(SharedSpan(offset, offset + len(message.content), header.end, header.end + size))
        header_ends.append(HeaderEnd(offset, header.end - 1))
    bos = getattr(tokenizer, "bos_token", None)
    begins_with_bos = bool(bos) and text.startswith(str(bos))
    return RenderedDocument(
        text, tuple(shared_spans), tuple(header_ends), templated=True, begins_with_bos=begins_with_bos
    )


def _apply_template(tokenizer: Any, messages: tuple[Message, ...]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))


def _content_offsets(tokenizer: Any, messages: tuple[Message, ...], text: str) -> list[int] | None:
    """Character offset of each content in the rendered text, or None if the template changes contents.

    Searching for the contents would find a message `user` inside its own header. Instead, the template is applied to
    placeholders as well, which shows the text it puts between contents.
    """
    marker = "\ue000{}\ue001"
    marked = tuple(Message(message.role, marker.format(index)) for index, message in enumerate(messages))
    between = re.split("\ue000(\\d+)\ue001", _apply_template(tokenizer, marked))
    if between[1::2] != [str(index) for index in range(len(messages))]:
        return None
    offsets = []
    rebuilt = ""
    for frame, message in zip(between[::2], messages, strict=False):
        rebuilt += frame
        offsets.append(len(rebuilt))
        rebuilt += message.content
    return offsets if rebuilt + between[-1] == text else None
