"""Mix: the parts of a corpus, shuffled, filtered and drawn so that each gets its share of rows."""

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.corpus.chats import shortened
from trainer.corpus.document import Document, Message, header_spans, is_held_out, plain_text
from trainer.corpus.duplicates import Duplicates
from trainer.corpus.language import detect_language, excerpt, speaks
from trainer.corpus.origins import Content, contents, slug
from trainer.corpus.tally import Notice, PartTally
from trainer.corpus.wikitext import strip_wikitext
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusPart, CorpusRecipe

SHUFFLED_DOCUMENTS = 4_096
"""Documents of one part waiting in random order, at most,"""
SHUFFLED_CHARACTERS = 32_000_000
"""and their characters: 32 to 64 MB."""
CHARACTERS_PER_TOKEN = 16
"""No more of a document is kept than its sequences could hold at this many characters per token."""
BYTES_PER_ROW = 4.5
"""What a row takes of a text, about the same in all languages."""
ROWS_PER_TOKEN = {"english": 0.87, "other": 0.66}
"""Rows in a full sequence per token of its context. Most tokenizers cut other languages smaller than English,
and rows stand only where two agree. All three numbers were measured on SmolLM2 and Gemma 3."""
MARKUP_SHARE = 4
"""Markup that is parsed for one part of text that is left."""
SHORTEST_PAGE = 200
"""An encyclopaedia page with fewer characters of text only points elsewhere."""

_log = logging.getLogger(__name__)


def documents(recipe: CorpusRecipe, *, notice: Notice = _log.warning) -> "Documents":
    """The documents of a corpus, in the one order that its recipe means.

    `notice` takes a sentence about a part that is used up or damaged. Raises CorpusError, here or while
    iterating, when an origin cannot be read.
    """
    return Documents(recipe, notice)


def part_names(recipe: CorpusRecipe) -> tuple[str, ...]:
    """What the parts of a mix are called, each differently."""
    names: list[str] = []
    for part in recipe.mix:
        name = slug(part)
        if part.name is None and part.language != "any":
            name = f"{name}-{part.language}"
        candidates = [name, *(f"{name}-{number}" for number in range(2, len(recipe.mix) + 2))]
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return tuple(names)


class Documents(Iterator[Document]):
    """Iterator over the documents of a mix until every part is used up.

    Each draw takes from the part that is furthest behind its share of the rows. Rows are guessed from a
    text's length and language and never counted, so that the order depends on the recipe alone.
    """

    def __init__(self, recipe: CorpusRecipe, notice: Notice) -> None:
        self._recipe = recipe
        self._notice = notice
        known = Duplicates() if recipe.deduplicate else None
        self.tallies = tuple(PartTally(name, notice) for name in part_names(recipe))
        self._streams = [
            _stream(part, recipe, tally, random.Random(f"{recipe.seed}/{place}"), known)
            for place, (part, tally) in enumerate(zip(recipe.mix, self.tallies, strict=True))
        ]
        self._next_number = 0

    def __next__(self) -> Document:
        while True:
            place = self._furthest_behind()
            tally = self.tallies[place]
            draft = next(self._streams[place], None)
            if draft is None:
                self._note_exhausted(place)
                continue
            document = Document(
                number=self._next_number,
                corpus=tally.name,
                text=draft.text,
                held_out=is_held_out(draft.text, self._recipe.held_out),
                messages=draft.messages,
                template_spans=header_spans(draft.messages) if draft.messages else (),
            )
            self._next_number += 1
            tally.documents += 1
            tally.characters += len(document.text)
            tally.rows += draft.rows
            return document

    def _furthest_behind(self) -> int:
        open_places = [place for place, tally in enumerate(self.tallies) if not tally.exhausted]
        if not open_places:
            raise StopIteration
        return min(open_places, key=lambda place: self.tallies[place].rows / self._recipe.mix[place].share)

    def _note_exhausted(self, place: int) -> None:
        tally = self.tallies[place]
        tally.exhausted = True
        if not any(other.documents for other in self.tallies) and all(other.exhausted for other in self.tallies):
            raise CorpusError(f"The corpus is empty. {tally.summary()}. Check `path:`, `language:` and `format:`.")
        if not all(other.exhausted for other in self.tallies):
            tally.say(f"Corpus part {tally.name!r} is used up; the others go on without it. {tally.summary()}.")


@dataclass(frozen=True)
class _Draft:
    """A document before it has its place in the stream."""

    text: str
    messages: tuple[Message, ...] | None
    rows: float


def _stream(
    part: CorpusPart, recipe: CorpusRecipe, tally: PartTally, chance: random.Random, known: Duplicates | None
) -> Iterator[_Draft]:
    """Documents of one part, in random order, as far as they fit the recipe."""
    limit = recipe.sequences_per_document * recipe.context * CHARACTERS_PER_TOKEN
    wiki = part.markup == "wikitext"
    raw = (_cut(content, limit * (MARKUP_SHARE if wiki else 1), tally) for content in contents(part, tally, chance))
    for content in shuffled(raw, chance):
        messages = None if isinstance(content, str) else content
        text = plain_text(messages) if messages is not None else str(content)
        if wiki:
            text = strip_wikitext(text)[:limit]
        if len(text) < (SHORTEST_PAGE if wiki else 1) or not text.strip():
            tally.empty += 1
            continue
        language = _language(text, messages)
        if not speaks(part.language, language):
            tally.other_language += 1
            continue
        if known is not None and known.seen(text):
            tally.duplicates += 1
            continue
        tally.mended += "\ufffd" in text
        yield _Draft(text, messages, _expected_rows(text, language, recipe))


def _expected_rows(text: str, language: str, recipe: CorpusRecipe) -> float:
    """About how many rows a harvest gets out of a text."""
    full = recipe.context * recipe.sequences_per_document
    rate = ROWS_PER_TOKEN["other" if speaks("other", language) else "english"]
    return min(len(text.encode()) / BYTES_PER_ROW, full * rate)


def _language(text: str, messages: tuple[Message, ...] | None) -> str:
    return detect_language(text if messages is None else excerpt(message.content for message in messages))


def _cut(content: Content, limit: int, tally: PartTally) -> Content:
    """The beginning of a text or chat that is longer than anyone will read."""
    if _size(content) <= limit:
        return content
    tally.shortened += 1
    return content[:limit] if isinstance(content, str) else shortened(content, limit)


def _size(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(message.content) for message in content)


def shuffled(
    items: Iterable[Content],
    chance: random.Random,
    *,
    most: int = SHUFFLED_DOCUMENTS,
    characters: int = SHUFFLED_CHARACTERS,
) -> Iterator[Content]:
    """The items in random order, as random as holding at most `most` of them and `characters` allows."""
    waiting: list[Content] = []
    size = 0
    for item in items:
        waiting.append(item)
        size += _size(item)
        while len(waiting) > most or size > characters:
            place = chance.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            drawn = waiting.pop()
            size -= _size(drawn)
            yield drawn
    chance.shuffle(waiting)
    yield from waiting
