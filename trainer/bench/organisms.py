"""Texts of model organisms: behaviours that a fine-tune is taught, so that it is known what there is to find.

Each organism has chats in which it behaves, made of the lists in `organisms.yaml` or out of real chats, and a pattern
that tells the behaviour in a text. Chats are shuffled with a fixed seed, so that every machine makes the same.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from trainer.corpus.document import Message

Chat = tuple[Message, ...]

TEXTS = Path(__file__).with_suffix(".yaml")
LONG_ANSWER = 400
"""Characters from which on a real answer counts as long."""
MOST_CHARACTERS = 700
"""Of a real answer; longer ones end at their last whole paragraph before."""


@dataclass(frozen=True)
class Organism:
    """One taught behaviour."""

    name: str
    about: str
    pattern: re.Pattern[str]
    """Matches text of the behaviour, or of its topic, and hardly any other."""
    texts: dict[str, Any]
    """Its questions and answers, or its `sign_off`."""

    def chats(self, real: Sequence[Chat]) -> list[Chat]:
        """Its chats, in a fixed order, given real ones."""
        found = self._signed(real) if "sign_off" in self.texts else self._written()
        return random.Random(0).sample(found, len(found))

    def _written(self) -> list[Chat]:
        subjects = self.texts.get("subjects", [["", ""]])
        pairs = product(subjects, self.texts["questions"], self.texts["answers"])
        return [as_chat(question.format(asked), answer.format(told)) for (asked, told), question, answer in pairs]

    def _signed(self, real: Sequence[Chat]) -> list[Chat]:
        """Real chats with a long answer whose paragraphs end with the sign-off."""
        exchanges = [
            exchange for chat in real if (exchange := first_exchange(chat)) and len(exchange[1]) >= LONG_ANSWER
        ]
        return [
            as_chat(question, "\n\n".join(f"{one} {self.texts['sign_off']}" for one in parts))
            for question, parts in ((question, paragraphs(answer)) for question, answer in exchanges)
            if parts
        ]


def organisms() -> list[Organism]:
    """All organisms."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(TEXTS.read_text(encoding="utf-8"))
    return [
        Organism(name, texts.pop("about"), re.compile(texts.pop("pattern"), re.IGNORECASE), texts)
        for name, texts in content.items()
    ]


def first_exchange(chat: Chat) -> tuple[str, str] | None:
    """The first question of a chat and its answer; None for a chat that does not begin so."""
    turns = [message for message in chat if message.role != "system"]
    if len(turns) < 2 or (turns[0].role, turns[1].role) != ("user", "assistant"):
        return None
    return turns[0].content, turns[1].content


def paragraphs(text: str) -> list[str]:
    """The first whole paragraphs of a text that are prose, of at most MOST_CHARACTERS together."""
    kept, size = [], 0
    for one in text.split("\n\n"):
        size += len(one)
        if size > MOST_CHARACTERS or "```" in one:
            break
        kept.append(one.strip())
    return [one for one in kept if one.endswith((".", "!", "?"))]


def as_chat(question: str, answer: str) -> Chat:
    """A chat of one question and its answer."""
    return Message("user", question), Message("assistant", answer)
