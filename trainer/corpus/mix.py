"""Draws filtered, shuffled documents from the parts of a corpus so that each gets its share of rows."""

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.corpus.chats import truncate_chat
from trainer.corpus.conversations import Content, Record, with_conversations
from trainer.corpus.document import Document, Message, canonical_chat_text, header_spans
from trainer.corpus.document_groups import DocumentGroups
from trainer.corpus.language import chat_excerpt, detect_language, matches_language
from trainer.corpus.origins import default_name, read_documents
from trainer.corpus.tally import Notify, PartTally
from trainer.corpus.wikitext import strip_wikitext
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusPart, CorpusRecipe

SHUFFLE_BUFFER_DOCUMENTS = 4_096
"""Capacity of a part's shuffle buffer in documents,"""
SHUFFLE_BUFFER_CHARACTERS = 32_000_000
"""and in characters (32 to 64 MB)."""
CHARACTERS_PER_TOKEN = 16
"""A document is cut to what its sequences could hold at this many characters per token."""
BYTES_PER_ROW = 4.5
"""Mean bytes of text per row; about the same in all languages."""
ROWS_PER_TOKEN = {"english": 0.87, "other": 0.66}
"""Rows in a full sequence per token of its context. Most tokenizers split other languages into smaller tokens than
English, and there is a row only where two of them agree. All three numbers were measured on SmolLM2 and Gemma 3."""
MARKUP_FACTOR = 4
"""Characters of markup parsed per character of text wanted."""
MIN_PAGE_CHARACTERS = 200
"""Shorter encyclopaedia pages are skipped: they only point elsewhere."""

_log = logging.getLogger(__name__)


def open_corpus(recipe: CorpusRecipe, *, notify: Notify = _log.warning) -> "DocumentStream":
    """Open the stream of a corpus's documents; their order depends on the recipe alone.

    `notify` is called with a message when a part is exhausted or damaged. Raises CorpusError, here or while
    iterating, if an origin cannot be read.
    """
    return DocumentStream(recipe, notify)


def part_names(recipe: CorpusRecipe) -> tuple[str, ...]:
    """A unique name for each part of a mix."""
    names: list[str] = []
    for part in recipe.mix:
        name = default_name(part)
        if part.name is None and part.language != "any":
            name = f"{name}-{part.language}"
        candidates = [name, *(f"{name}-{number}" for number in range(2, len(recipe.mix) + 2))]
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return tuple(names)


class DocumentStream(Iterator[Document]):
    """Iterator over the documents of a mix until every part is exhausted.

    Each draw takes from the part that is furthest behind its share of the rows. Rows are estimated from a text's
    length and language, not counted, so that the order depends on the recipe alone.
    """

    def __init__(self, recipe: CorpusRecipe, notify: Notify) -> None:
        self._recipe = recipe
        self._groups = DocumentGroups(held_out=recipe.held_out, deduplicate=recipe.deduplicate)
        self.tallies = tuple(PartTally(name, notify) for name in part_names(recipe))
        self._streams = [
            _part_documents(part, recipe, tally, random.Random(f"{recipe.seed}/{index}"))
            for index, (part, tally) in enumerate(zip(recipe.mix, self.tallies, strict=True))
        ]
        self._next_number = 0

    def __next__(self) -> Document:
        while True:
            index = self._furthest_behind()
            tally = self.tallies[index]
            found = next(self._streams[index], None)
            if found is None:
                self._mark_exhausted(index)
                continue
            part = self._recipe.mix[index]
            place = self._groups.place(found.text, found.conversation, part.dataset or part.path or "")
            if place is None:
                tally.duplicates += 1
                continue
            document = Document(
                number=self._next_number,
                corpus=tally.name,
                text=found.text,
                held_out=place.held_out,
                group=place.group,
                messages=found.messages,
                template_spans=header_spans(found.messages) if found.messages else (),
            )
            self._next_number += 1
            tally.repaired += "\ufffd" in document.text
            tally.documents += 1
            tally.characters += len(document.text)
            tally.rows += found.rows
            return document

    def _furthest_behind(self) -> int:
        open_parts = [index for index, tally in enumerate(self.tallies) if not tally.exhausted]
        if not open_parts:
            raise StopIteration
        return min(open_parts, key=lambda index: self.tallies[index].rows / self._recipe.mix[index].share)

    def _mark_exhausted(self, index: int) -> None:
        tally = self.tallies[index]
        tally.exhausted = True
        if not any(each.documents for each in self.tallies) and all(each.exhausted for each in self.tallies):
            raise CorpusError(f"The corpus is empty. {tally.summary()}. Check `path:`, `language:` and `format:`.")
        if not all(each.exhausted for each in self.tallies):
            tally.notify_once(
                f"Corpus part {tally.name!r} is exhausted; the others continue without it. {tally.summary()}."
            )


@dataclass(frozen=True)
class _UnnumberedDocument:
    """A document without its number in the stream."""

    text: str
    messages: tuple[Message, ...] | None
    conversation: str | None
    rows: float


def _part_documents(
    part: CorpusPart, recipe: CorpusRecipe, tally: PartTally, rng: random.Random
) -> Iterator[_UnnumberedDocument]:
    """Yield the documents of one part that pass the recipe's filters, in shuffled order."""
    limit = recipe.sequences_per_document * recipe.context * CHARACTERS_PER_TOKEN
    is_wikitext = part.markup == "wikitext"
    raw = (
        record._replace(content=_truncate(record.content, limit * (MARKUP_FACTOR if is_wikitext else 1), tally))
        for record in read_documents(part, tally, rng)
    )
    for content, conversation in shuffled(with_conversations(raw), rng):
        messages = None if isinstance(content, str) else content
        text = canonical_chat_text(messages) if messages is not None else str(content)
        if is_wikitext:
            text = strip_wikitext(text)[:limit]
        if len(text) < (MIN_PAGE_CHARACTERS if is_wikitext else 1) or not text.strip():
            tally.empty += 1
            continue
        language = _content_language(text, messages)
        if not matches_language(part.language, language):
            tally.other_language += 1
            continue
        yield _UnnumberedDocument(text, messages, conversation, _expected_rows(text, language, recipe))


def _expected_rows(text: str, language: str, recipe: CorpusRecipe) -> float:
    """Estimated number of rows that a text gives."""
    full = recipe.context * recipe.sequences_per_document
    rate = ROWS_PER_TOKEN["other" if matches_language("other", language) else "english"]
    return min(len(text.encode()) / BYTES_PER_ROW, full * rate)


def _content_language(text: str, messages: tuple[Message, ...] | None) -> str:
    return detect_language(text if messages is None else chat_excerpt(message.content for message in messages))


def _truncate(content: Content, limit: int, tally: PartTally) -> Content:
    """The text or chat, cut to about `limit` characters."""
    if _size(content) <= limit:
        return content
    tally.truncated += 1
    return content[:limit] if isinstance(content, str) else truncate_chat(content, limit)


def _size(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(message.content) for message in content)


def shuffled(
    items: Iterable[Record],
    rng: random.Random,
    *,
    max_items: int = SHUFFLE_BUFFER_DOCUMENTS,
    max_characters: int = SHUFFLE_BUFFER_CHARACTERS,
) -> Iterator[Record]:
    """Shuffle a stream of items with a buffer of at most `max_items` items and `max_characters` characters."""
    buffer: list[Record] = []
    size = 0
    for item in items:
        buffer.append(item)
        size += _size(item.content)
        while len(buffer) > max_items or size > max_characters:
            index = rng.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            drawn = buffer.pop()
            size -= _size(drawn.content)
            yield drawn
    rng.shuffle(buffer)
    yield from buffer
