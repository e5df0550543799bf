"""Validates and normalises names, labels and notes."""

import unicodedata
from urllib.parse import quote, unquote

from app.errors import ReaderError

NAME_COOKIE = "crossdiff_name"
"""Cookie that stores the name a visitor signs with."""
NAME_LIMIT = 60
"""Characters in an author's name."""
TEXT_LIMIT = 300
"""Characters in a label."""
NOTE_LIMIT = 4000
"""Characters in a note."""
ANONYMOUS = frozenset({"anonymous", "anon", "anonym", "nobody", "unknown", "someone", "user", "guest", "me", "n/a"})


class WordingRefused(ReaderError):
    """Typed text that cannot be stored as it is; the form keeps it."""

    status = 422
    title = "Not saved"

    def __init__(self, field: str, fact: str, *, remedy: str) -> None:
        super().__init__(fact, remedy=remedy)
        self.field = field
        """`author`, `text` or `note`."""


def author_name(typed: str) -> str:
    """Author name with whitespace collapsed. Raises WordingRefused if it is empty, anonymous or too long."""
    name = " ".join(_normalized(typed, "author").split())
    if not name or name.casefold() in ANONYMOUS:
        raise WordingRefused(
            "author",
            "A label needs an author.",
            remedy="Type a name; any name your team knows will do.",
        )
    _check_length(name, NAME_LIMIT, "author", "The name")
    return name


def name_from_cookie(value: str) -> str:
    """Author name from the cookie's value; empty when it is not a valid name."""
    try:
        return author_name(unquote(value, errors="strict"))
    except (WordingRefused, UnicodeDecodeError):
        return ""


def name_to_cookie(name: str) -> str:
    """Percent-encode a name for the cookie, since cookies carry ASCII only."""
    return quote(name)


def label_text(typed: str) -> str:
    """Label text on one line. Raises WordingRefused if it is empty or too long."""
    text = " ".join(_normalized(typed, "text").split())
    if not text:
        raise WordingRefused("text", "The label is empty.", remedy="Type what the feature is about, or withdraw it.")
    _check_length(text, TEXT_LIMIT, "text", "The label", remedy="Keep the label short and put the rest into the note.")
    return text


def note_text(typed: str) -> str:
    """Note text, line breaks kept. Raises WordingRefused if it is too long."""
    text = _normalized(typed, "note").strip()
    _check_length(text, NOTE_LIMIT, "note", "The note")
    return text


def folded(text: str) -> str:
    """Text folded for search: case and Unicode compatibility forms (NFKC) do not matter."""
    return unicodedata.normalize("NFKC", text).casefold()


def _normalized(typed: str, field: str) -> str:
    """Text in NFC with Unix line ends. Raises WordingRefused for control characters and lone surrogates."""
    text = unicodedata.normalize("NFC", typed.replace("\r\n", "\n").replace("\r", "\n"))
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise WordingRefused(
                field,
                f"The text contains the control character U+{ord(character):04X}, which cannot be stored.",
                remedy="Remove it and save again.",
            )
    return text


def _check_length(text: str, limit: int, field: str, what: str, *, remedy: str = "Shorten it and save again.") -> None:
    if len(text) > limit:
        raise WordingRefused(field, f"{what} has {len(text):,} characters; the limit is {limit:,}.", remedy=remedy)
