"""Counts the documents and dropped records of one part of the mix."""

from collections.abc import Callable
from dataclasses import dataclass, field

Notify = Callable[[str], None]
"""Shows one message to the user."""


@dataclass
class PartTally:
    """Counts of one part; all but `characters` and `rows` are documents or records."""

    name: str
    notify: Notify
    documents: int = 0
    """Documents yielded."""
    characters: int = 0
    """In the canonical texts of the documents yielded."""
    rows: float = 0.0
    """Estimated rows of the documents yielded."""
    unreadable: int = 0
    """Damaged, without text, or with turns of unknown roles."""
    tools: int = 0
    """Chats with turns of tools."""
    empty: int = 0
    """Empty or too short after cleaning."""
    other_language: int = 0
    duplicates: int = 0
    repaired: int = 0
    """Documents with bytes that were not valid text and became U+FFFD."""
    truncated: int = 0
    """Cut, because a harvest would not read further."""
    exhausted: bool = False
    _notified: set[str] = field(default_factory=set, repr=False)

    def notify_once(self, sentence: str) -> None:
        """Show a message, unless it was shown before."""
        if sentence not in self._notified:
            self._notified.add(sentence)
            self.notify(sentence)

    def summary(self) -> str:
        """One line for the log: documents yielded, and records dropped by reason."""
        left_out = {
            "unreadable": self.unreadable,
            "with turns of tools": self.tools,
            "empty": self.empty,
            "in another language": self.other_language,
            "duplicates": self.duplicates,
        }
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        text = f"{self.name}: {self.documents:,} documents, {self.characters:,} characters"
        text += f"; left out: {reasons}" if reasons else ""
        return text + (f"; {self.repaired:,} held bytes that are not text" if self.repaired else "")
