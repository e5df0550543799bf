"""Rendering: a document as one source reads it, and which parts equal the canonical text.

A chat model reads `<|im_start|>user` where the canonical text says `User: `. The contents are the same
characters in both, so byte ends inside them can be compared across sources; what lies between cannot,
except the end of a role header, which every rendering has exactly once per message.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.corpus.document import Document, Message


class Piece(NamedTuple):
    """Characters of the rendered text that are the same as some bytes of the canonical text."""

    start_char: int
    end_char: int
    start_byte: int
    end_byte: int


class HeaderMark(NamedTuple):
    """End of a role header in both texts.

    The last template token before a content ends at `end_char` of the rendered text; the last header
    token of the plain rendering (its colon: most tokenizers give the space after it to the next word)
    ends at `end_byte` of the canonical text.
    """

    end_char: int
    end_byte: int


@dataclass(frozen=True)
class RenderedChat:
    """What one source reads of a document."""

    text: str
    pieces: tuple[Piece, ...]
    """In order; the whole text in one piece when it is the canonical text itself."""
    header_marks: tuple[HeaderMark, ...] = ()
    """One per message, for a template only: a plain rendering holds its headers in its one piece."""
    templated: bool = False
    begins_with_bos: bool = False
    """The text already spells the tokenizer's BOS, so encoding must not add another one."""
    refused: str | None = None
    """Why the template was not used although it was asked for."""


def render_chat(document: Document, tokenizer: Any, use_template: bool) -> RenderedChat:
    """The document as a source with this tokenizer reads it.

    With `use_template` a chat goes through the tokenizer's chat template. Templates that refuse it
    (a system role, two turns of one role in a row) or that rewrite a content give the plain rendering
    and `refused` says why. Text is always read as it is.
    """
    if not use_template or document.messages is None:
        return _plain(document)
    try:
        text = _through_template(tokenizer, document.messages)
        places = _content_places(tokenizer, document.messages, text)
    # A template is a program somebody else wrote: it may raise what it likes.
    except Exception as error:  # noqa: BLE001
        return _plain(document, refused=f"{type(error).__name__}: {error}"[:200])
    if places is None:
        return _plain(document, refused="the template changes the contents of messages")
    return _templated(document, text, places, tokenizer)


def _plain(document: Document, refused: str | None = None) -> RenderedChat:
    piece = Piece(0, len(document.text), 0, len(document.text.encode()))
    return RenderedChat(document.text, (piece,), refused=refused)


def _templated(document: Document, text: str, places: list[int], tokenizer: Any) -> RenderedChat:
    pieces = []
    marks = []
    for message, place, header in zip(document.messages or (), places, document.template_spans, strict=True):
        size = len(message.content.encode())
        pieces.append(Piece(place, place + len(message.content), header.end, header.end + size))
        marks.append(HeaderMark(place, header.end - 1))
    bos = getattr(tokenizer, "bos_token", None)
    begins = bool(bos) and text.startswith(str(bos))
    return RenderedChat(text, tuple(pieces), tuple(marks), templated=True, begins_with_bos=begins)


def _through_template(tokenizer: Any, messages: tuple[Message, ...]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))


def _content_places(tokenizer: Any, messages: tuple[Message, ...], text: str) -> list[int] | None:
    """Character index of each content in the rendered text; None when it is not certain.

    Searching for the contents would find a message `user` inside its own header. Instead, marked
    contents go through the template once more, which shows what it puts between them.
    """
    marker = "\ue000{}\ue001"
    marked = tuple(Message(message.role, marker.format(index)) for index, message in enumerate(messages))
    between = re.split("\ue000(\\d+)\ue001", _through_template(tokenizer, marked))
    if between[1::2] != [str(index) for index in range(len(messages))]:
        return None
    places = []
    rebuilt = ""
    for frame, message in zip(between[::2], messages, strict=False):
        rebuilt += frame
        places.append(len(rebuilt))
        rebuilt += message.content
    return places if rebuilt + between[-1] == text else None
