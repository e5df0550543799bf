"""A document of the corpus: its canonical text, and the messages if it is a chat.

Byte ends refer to the canonical text, for every source. A source that reads a chat through its own template sees
other text around the same contents; `rendering` maps one to the other.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]

ROLE_HEADERS: dict[Role, str] = {"system": "System: ", "user": "User: ", "assistant": "Assistant: "}
"""Prefix of a message in the canonical text of a chat, by role."""
MESSAGE_SEPARATOR = "\n\n"
HASHED_CHARACTERS = 1_000
"""Length of the prefix whose hash decides whether a document is held out; equal prefixes land in the same split."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `content` is stripped and never empty."""

    role: Role
    content: str


class Span(NamedTuple):
    """Half-open byte range of a canonical text in UTF-8."""

    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    number: int
    """Running index in the stream; the same recipe gives the same indices."""
    corpus: str
    """Name of the corpus part it comes from."""
    text: str
    """Canonical text: valid UTF-8, without NUL."""
    held_out: bool
    """Excluded from training, with its whole group."""
    group: int
    """Number of the first document of its group: of documents that are not independent (`document_groups`)."""
    messages: tuple[Message, ...] | None = None
    """The turns of a chat; None for plain text."""
    template_spans: tuple[Span, ...] = ()
    """Role headers of a chat, such as `User: ` with its space; empty for plain text."""


def clean(text: str) -> str:
    """The text with lone surrogates and NUL, which UTF-8 or HTML cannot represent, replaced by U+FFFD."""
    text = text.replace("\x00", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        # Joins surrogate pairs that were escaped one by one, and replaces lone surrogates.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def canonical_chat_text(messages: tuple[Message, ...]) -> str:
    """The canonical text of a chat."""
    return MESSAGE_SEPARATOR.join(ROLE_HEADERS[message.role] + message.content for message in messages)


def header_spans(messages: tuple[Message, ...]) -> tuple[Span, ...]:
    """Byte spans of the role headers in the canonical text, one per message."""
    spans = []
    offset = 0
    for message in messages:
        header = len(ROLE_HEADERS[message.role])
        spans.append(Span(offset, offset + header))
        offset += header + len(message.content.encode()) + len(MESSAGE_SEPARATOR)
    return tuple(spans)


def is_held_out(key: str, share: float) -> bool:
    """Whether a text, or the name of a conversation, is in the held-out `share` of all; decided by its hash."""
    digest = hashlib.blake2b(key[:HASHED_CHARACTERS].encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
