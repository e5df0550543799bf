"""Tally: what became of everything one part of the mix had to offer."""

from collections.abc import Callable
from dataclasses import dataclass, field

Notice = Callable[[str], None]
"""Takes one sentence for the person who runs this."""


@dataclass
class PartTally:
    """Counts of one part; all but `characters` and `rows` are documents or records."""

    name: str
    notice: Notice
    documents: int = 0
    """Handed out."""
    characters: int = 0
    """In the canonical texts handed out."""
    rows: float = 0.0
    """Rows these documents are expected to give."""
    unreadable: int = 0
    """Damaged, without text, or with turns of unknown roles."""
    empty: int = 0
    """Nothing, or next to nothing, left after cleaning."""
    other_language: int = 0
    duplicates: int = 0
    mended: int = 0
    """Documents in which U+FFFD stands for bytes that were no text."""
    shortened: int = 0
    """Cut because no harvest would read on."""
    exhausted: bool = False
    _said: set[str] = field(default_factory=set, repr=False)

    def say(self, sentence: str) -> None:
        """Tell the person once."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.notice(sentence)

    def summary(self) -> str:
        """One line for the log: what came out, what was left out and why."""
        left_out = {
            "unreadable": self.unreadable,
            "empty": self.empty,
            "in another language": self.other_language,
            "duplicates": self.duplicates,
        }
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        text = f"{self.name}: {self.documents:,} documents, {self.characters:,} characters"
        text += f"; left out: {reasons}" if reasons else ""
        return text + (f"; {self.mended:,} held bytes that are no text" if self.mended else "")
