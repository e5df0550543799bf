"""Document: one canonical text of the corpus; a chat keeps its messages beside it.

The canonical text is what byte ends count in, for every source. A source that reads a chat through
its own template sees other text around the same contents; `rendering` says which is which.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]

HEADERS: dict[Role, str] = {"system": "System: ", "user": "User: ", "assistant": "Assistant: "}
"""What stands before a message in the canonical text of a chat."""
BETWEEN_MESSAGES = "\n\n"
SPLIT_CHARACTERS = 1_000
"""Characters whose hash decides whether a document is held out; texts that begin alike stay on one side."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `content` has no white space at its ends and is never empty."""

    role: Role
    content: str


class Span(NamedTuple):
    """Part of a canonical text in bytes of its UTF-8, the end excluded."""

    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    number: int
    """Running index in the stream; the same recipe gives the same indices."""
    corpus: str
    """Name of the part of the mix it comes from."""
    text: str
    """Canonical text: valid UTF-8, without NUL."""
    held_out: bool
    """Training never sees it. Decided by the text alone, so the same in every order and every mix."""
    messages: tuple[Message, ...] | None = None
    """The turns of a chat; None for text."""
    template_spans: tuple[Span, ...] = ()
    """Role headers of a chat, as `User: `, the space included; empty for text."""


def clean(text: str) -> str:
    """The text with U+FFFD for what UTF-8 or a page cannot hold: lone surrogates and NUL."""
    text = text.replace("\x00", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves that were written apart make their character again.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def plain_text(messages: tuple[Message, ...]) -> str:
    """The canonical text of a chat."""
    return BETWEEN_MESSAGES.join(HEADERS[message.role] + message.content for message in messages)


def header_spans(messages: tuple[Message, ...]) -> tuple[Span, ...]:
    """Byte spans of the role headers in the canonical text, one per message."""
    spans = []
    place = 0
    for message in messages:
        header = len(HEADERS[message.role])
        spans.append(Span(place, place + header))
        place += header + len(message.content.encode()) + len(BETWEEN_MESSAGES)
    return tuple(spans)


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` of all texts: by its hash, never by its place."""
    digest = hashlib.blake2b(text[:SPLIT_CHARACTERS].encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
