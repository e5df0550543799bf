"""Wording: what a name, a label and a note may hold."""

import unicodedata
from urllib.parse import quote, unquote

from app.errors import ReaderError

NAME_COOKIE = "crossdiff_name"
"""Cookie with the name that a visitor signs with."""
NAME_LIMIT = 60
"""Characters in an author's name."""
TEXT_LIMIT = 300
"""Characters in a label."""
NOTE_LIMIT = 4000
"""Characters in a note."""
NOBODY = frozenset({"anonymous", "anon", "anonym", "nobody", "unknown", "someone", "user", "guest", "me", "n/a"})


class WordingRefused(ReaderError):
    """What a person typed cannot be stored as it is; nothing of it is lost, the form keeps it."""

    status = 422
    title = "Not saved"

    def __init__(self, field: str, fact: str, *, remedy: str) -> None:
        super().__init__(fact, remedy=remedy)
        self.field = field
        """`author`, `text` or `note`."""


def author_name(typed: str) -> str:
    """A name to sign with, spaces made single. Raises WordingRefused for none, for 'anonymous' and for a long one."""
    name = " ".join(_plain(typed, "author").split())
    if not name or name.casefold() in NOBODY:
        raise WordingRefused(
            "author",
            "A label needs somebody who stands by it.",
            remedy="Type a name; any name your team knows will do.",
        )
    _within(name, NAME_LIMIT, "author", "The name")
    return name


def name_in_cookie(value: str) -> str:
    """The name that a visitor's cookie holds; empty when there is none that can sign."""
    try:
        return author_name(unquote(value))
    except WordingRefused:
        return ""


def cookie_of_name(name: str) -> str:
    """A name as a cookie can carry it, in any alphabet."""
    return quote(name)


def label_text(typed: str) -> str:
    """A label on one line. Raises WordingRefused for an empty or a long one."""
    text = " ".join(_plain(typed, "text").split())
    if not text:
        raise WordingRefused("text", "The label is empty.", remedy="Type what the feature is about, or withdraw it.")
    _within(text, TEXT_LIMIT, "text", "The label", remedy="Keep the label short and put the rest into the note.")
    return text


def note_text(typed: str) -> str:
    """A note, its lines kept. Raises WordingRefused for a long one."""
    text = _plain(typed, "note").strip()
    _within(text, NOTE_LIMIT, "note", "The note")
    return text


def folded(text: str) -> str:
    """Text as search compares it: case and compatibility forms do not matter."""
    return unicodedata.normalize("NFKC", text).casefold()


def _plain(typed: str, field: str) -> str:
    """Composed characters and single line ends; refuses what no database and no page can carry."""
    text = unicodedata.normalize("NFC", typed.replace("\r\n", "\n").replace("\r", "\n"))
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise WordingRefused(
                field,
                f"The text holds the control character U+{ord(character):04X}, which cannot be stored.",
                remedy="Take it out and save again.",
            )
    return text


def _within(text: str, limit: int, field: str, what: str, *, remedy: str = "Shorten it and save again.") -> None:
    if len(text) > limit:
        raise WordingRefused(field, f"{what} has {len(text):,} characters; {limit:,} are the limit.", remedy=remedy)
