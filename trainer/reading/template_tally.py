"""Counts the chats that a source's template could render, and those that were read as plain text instead."""

from dataclasses import dataclass, field

from trainer.errors import SourceError
from trainer.recipe.fitting import SourceRecipe

TOLERATED = 0.1
"""Share of the chats that may be read as plain text where the recipe says `chat: template`."""


@dataclass
class TemplateTally:
    """What became of the chats that one source was to read by its template."""

    chats: int = 0
    plain: int = 0
    """Those that were read as plain text."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many of these for which reason."""

    def add(self, refusal: str | None) -> None:
        """Count one chat; `refusal` says why it was read as plain text, if it was."""
        self.chats += 1
        if refusal is not None:
            self.plain += 1
            self.reasons[refusal] = self.reasons.get(refusal, 0) + 1

    def line(self, source: str) -> str:
        """A line about the chats that a source read as plain text."""
        return (
            f"{self.plain:,} of {self.chats:,} chats are read as plain text in {source}, because its chat template "
            f"cannot render them: {self._usual_reason()}"
        )

    def check(self, source: SourceRecipe) -> None:
        """Raise SourceError if the recipe insists on the template and it renders too few chats."""
        if source.chat == "template" and self.plain > TOLERATED * self.chats:
            raise SourceError(
                f"{source.name}: its chat template cannot render {self.plain:,} of {self.chats:,} chats "
                f"({self._usual_reason()}), and `chat: template` asks for it. Use `chat: auto` to read such chats as "
                "plain text, or leave them out of the corpus."
            )

    def _usual_reason(self) -> str:
        return max(self.reasons, key=self.reasons.__getitem__)
