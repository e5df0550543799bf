"""Puts documents that are not independent into one group: parts of a conversation, and texts like one another.

Halves, the held-out split and intervals are over groups. A document takes the group of its conversation, or else that
of the earlier text that it is most like, so that its split is known as soon as it is read.
"""

from typing import NamedTuple

from trainer.corpus.document import is_held_out
from trainer.corpus.duplicates import TextIndex


class Place(NamedTuple):
    """Group of a document, and the split of the group."""

    group: int
    """Number of the document that began the group."""
    held_out: bool


class DocumentGroups:
    """The groups of a stream of documents; every document is placed once, in order."""

    def __init__(self, *, held_out: float, deduplicate: bool) -> None:
        """`held_out` is the share of groups that are held out; with `deduplicate`, duplicates get no place."""
        self._share, self._deduplicate = held_out, deduplicate
        self._texts = TextIndex()
        self._of_conversation: dict[str, int] = {}
        self._held_out = bytearray()
        """Split of every document by number."""

    def place(self, text: str, conversation: str | None, origin: str) -> Place | None:
        """Place the next document, or None for a duplicate; `conversation` is a name within `origin`.

        The split of a group is decided by a hash of the name of its first document's conversation, or else of its text.
        It depends on neither order nor mix, except between similar texts.
        """
        compared = self._texts.compare(text)
        if compared.duplicate and self._deduplicate:
            return None
        key = None if conversation is None else f"{origin}\0{conversation}"
        number = len(self._held_out)
        group = self._of_conversation.get(key) if key is not None else None
        group = compared.group if group is None else group
        if group is None:
            group = number
            self._held_out.append(is_held_out(conversation or text, self._share))
        else:
            self._held_out.append(self._held_out[group])
        self._texts.add(compared, group)
        if key is not None:
            self._of_conversation[key] = group
        return Place(group, bool(self._held_out[number]))
