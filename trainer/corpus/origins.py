"""Reads texts and chats of one corpus part from the hub, from disk or from a package."""

import difflib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.corpus.chats import CHAT_COLUMNS, parse_chat
from trainer.corpus.document import Message, clean
from trainer.corpus.records import COMPRESSED, SUFFIXES, read_records
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError
from trainer.pypi import archives
from trainer.recipe.fitting import CorpusPart

Content = str | tuple[Message, ...]
"""Content of a document: a text, or the turns of a chat."""

PROBED_RECORDS = 100
"""A part is rejected if most of its first so many records hold no text."""
_WILDCARDS = frozenset("*?[")


def read_contents(part: CorpusPart, tally: PartTally, rng: random.Random) -> Iterator[Content]:
    """Yield every text or chat of a part in the order of its files; the files themselves are shuffled.

    Raises CorpusError if the origin or the column does not exist, or if most records hold no text.
    """
    column = _TextColumn(part)
    found = rejected = 0
    for record in _records(part, tally, rng, column):
        content = _content(column.value(record), part)
        if content is None:
            rejected += 1
            tally.unreadable += 1
        else:
            found += 1
            yield content
        if found + rejected == PROBED_RECORDS and rejected > found:
            break
    if rejected > found:
        kind = "chats (lists of turns with `role` and `content`)" if part.format == "chat" else "text"
        raise CorpusError(
            f"Corpus part {tally.name!r}: {rejected:,} of {found + rejected:,} records hold no {kind} "
            f"in column {column.name!r}. Set `column:` or `format:` of this part."
        )


def default_name(part: CorpusPart) -> str:
    """The part's name; if the recipe gives none, derived from its dataset, package or file."""
    if part.name is not None:
        return part.name
    origin = part.dataset or part.path or ""
    if archives.is_address(origin):
        last = origin.removeprefix("pypi:").partition("==")[0]
    else:
        last = origin.rstrip("/").rpartition("/")[2].partition(".")[0]
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in last.casefold())
    return kept.strip("-")[:48] or "corpus"


class _TextColumn:
    """The column that holds the text; chosen on the first record."""

    def __init__(self, part: CorpusPart) -> None:
        self._part = part
        self._chosen = False
        self.name = part.column

    def choose(self, names: list[str]) -> str:
        """Choose the column to read among those that exist. Raises CorpusError if none fits."""
        wanted = [self._part.column]
        if self._part.format == "chat" and self._part.column == "text":
            wanted = [*CHAT_COLUMNS, "text"]
        for name in wanted:
            if name in names:
                self.name, self._chosen = name, True
                return name
        near = difflib.get_close_matches(self._part.column, names, n=1)
        raise CorpusError(
            f"{self._part.dataset or self._part.path} has no column {self._part.column!r}; "
            f"it has {', '.join(map(repr, names)) or 'none'}. Set `column: {near[0] if near else '...'}` of this part."
        )

    def value(self, record: Any) -> Any:
        """The column's value in a record; the record itself if it is not a mapping."""
        if not isinstance(record, Mapping):
            return record
        if not self._chosen:
            self.choose([str(name) for name in record])
        return record.get(self.name)


def _content(value: Any, part: CorpusPart) -> Content | None:
    if part.format == "chat":
        return parse_chat(value)
    return clean(value) if isinstance(value, str) else None


def _records(part: CorpusPart, tally: PartTally, rng: random.Random, column: _TextColumn) -> Iterator[Any]:
    if part.dataset is not None:
        yield from _hub_records(part, rng, column)
        return
    assert part.path is not None, "a part has a dataset or a path"
    if archives.is_address(part.path):
        files = [archives.fetch(part.path, "corpora", notify=tally.notify)]
    else:
        files = find_files(part.path)
    rng.shuffle(files)
    for file in files:
        yield from read_records(file, tally, column.choose)


def find_files(path: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern refers to. Raises CorpusError if there are none."""
    location = Path(path).expanduser()
    if location.is_file():
        return [location]
    if location.is_dir():
        found = sorted(file for file in location.rglob("*") if file.is_file() and _has_text_suffix(file))
        if not found:
            raise CorpusError(f"{path} holds no file that ends in {', '.join(SUFFIXES)} (or these with .gz).")
        return found
    if _WILDCARDS & set(path):
        fixed = next(index for index, step in enumerate(location.parts) if _WILDCARDS & set(step))
        folder = Path(*location.parts[:fixed])
        found = sorted(file for file in folder.glob(str(Path(*location.parts[fixed:]))) if file.is_file())
        if found:
            return found
        raise CorpusError(f"No file matches {path}. Check {folder.absolute()}.")
    raise CorpusError(f"No file or folder at {path}. {_suggestion(location)}")


def _has_text_suffix(file: Path) -> bool:
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return name.suffix in SUFFIXES


def _suggestion(location: Path) -> str:
    """The nearest existing path to one that does not exist, as a sentence."""
    folder = location.absolute().parent
    while not folder.is_dir():
        location, folder = folder, folder.parent
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(location.name, names, n=1, cutoff=0.5)
    return f"Did you mean {folder / near[0]}?" if near else f"{folder} exists, but holds nothing of a similar name."


def _hub_records(part: CorpusPart, rng: random.Random, column: _TextColumn) -> Iterator[Any]:
    """Stream the records of a hub dataset; only the wanted column is transferred where the format allows it."""
    import datasets

    count = 0
    try:
        stream = datasets.load_dataset(part.dataset, part.subset, split=part.split, streaming=True)
        if stream.column_names:
            stream = stream.select_columns([column.choose(list(stream.column_names))])
        # Shuffles shards only; records of every kind of origin are shuffled later, in `mix`.
        for record in stream.shuffle(seed=rng.randrange(2**31), buffer_size=1):
            count += 1
            yield record
    except CorpusError:
        raise
    # The hub client, its file systems and its formats each raise errors of their own.
    except Exception as error:
        raise CorpusError(_hub_error(part, count, error)) from error


def _hub_error(part: CorpusPart, count: int, error: Exception) -> str:
    after = f"stopped after {count:,} records" if count else "cannot be opened"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"Hub dataset {part.dataset!r} {after}: {reason}. Check the name, `subset:` and `split:`, "
        "and the network; without one, give a local file as `path:`."
    )
