"""Origins: where a part of the mix takes its texts and chats from, on the hub, on disk or in a package."""

import difflib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.corpus.chats import CHAT_COLUMNS, read_chat
from trainer.corpus.document import Message, clean
from trainer.corpus.records import ENDINGS, PACKED, records
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError
from trainer.pypi import archives
from trainer.recipe.fitting import CorpusPart

Content = str | tuple[Message, ...]
"""What a document is made of: a text, or the turns of a chat."""

PROBED_RECORDS = 100
"""After this many records, a part of which most hold no text is given up."""
_WILD = frozenset("*?[")


def contents(part: CorpusPart, tally: PartTally, chance: random.Random) -> Iterator[Content]:
    """Every text or chat of a part, in the order of its origin; files of a folder in random order.

    Raises CorpusError when the origin or the column is not there, or when most records hold no text.
    """
    column = _Column(part)
    found = refused = 0
    for record in _records(part, tally, chance, column):
        content = _content(column.of(record), part)
        if content is None:
            refused += 1
            tally.unreadable += 1
        else:
            found += 1
            yield content
        if found + refused == PROBED_RECORDS and refused > found:
            break
    if refused > found:
        kind = "chats (lists of turns with `role` and `content`)" if part.format == "chat" else "text"
        raise CorpusError(
            f"Corpus part {tally.name!r}: {refused:,} of {found + refused:,} records hold no {kind} "
            f"in column {column.name!r}. Set `column:` or `format:` of this part."
        )


def slug(part: CorpusPart) -> str:
    """A name for a part that has none: of its dataset, its package, or its file."""
    if part.name is not None:
        return part.name
    origin = part.dataset or part.path or ""
    if archives.is_address(origin):
        last = origin.removeprefix("pypi:").partition("==")[0]
    else:
        last = origin.rstrip("/").rpartition("/")[2].partition(".")[0]
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in last.casefold())
    return kept.strip("-")[:48] or "corpus"


class _Column:
    """Finds the text of a record, and says so when the column is not there at all."""

    def __init__(self, part: CorpusPart) -> None:
        self._part = part
        self._chosen = False
        self.name = part.column

    def choose(self, names: list[str]) -> str:
        """The column to read out of those that exist; raises CorpusError."""
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

    def of(self, record: Any) -> Any:
        """The value of a record; the record itself when it is no mapping."""
        if not isinstance(record, Mapping):
            return record
        if not self._chosen:
            self.choose([str(name) for name in record])
        return record.get(self.name)


def _content(value: Any, part: CorpusPart) -> Content | None:
    if part.format == "chat":
        return read_chat(value)
    return clean(value) if isinstance(value, str) else None


def _records(part: CorpusPart, tally: PartTally, chance: random.Random, column: _Column) -> Iterator[Any]:
    if part.dataset is not None:
        yield from _hub_records(part, chance, column)
        return
    assert part.path is not None, "a part has a dataset or a path"
    if archives.is_address(part.path):
        files = [archives.fetch(part.path, "corpora", say=tally.notice)]
    else:
        files = _files(part.path)
    chance.shuffle(files)
    for file in files:
        yield from records(file, tally, column.choose)


def _files(path: str) -> list[Path]:
    """The files a path means: itself, those in a folder, or those a pattern finds; raises CorpusError."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.is_file() and _is_text(file))
        if not found:
            raise CorpusError(f"{path} holds no file that ends in {', '.join(ENDINGS)} (or these with .gz).")
        return found
    if _WILD & set(path):
        fixed = next(index for index, step in enumerate(place.parts) if _WILD & set(step))
        folder = Path(*place.parts[:fixed])
        found = sorted(file for file in folder.glob(str(Path(*place.parts[fixed:]))) if file.is_file())
        if found:
            return found
        raise CorpusError(f"No file matches {path}. Look into {folder.absolute()}.")
    raise CorpusError(f"No file or folder at {path}. {_nearest(place)}")


def _is_text(file: Path) -> bool:
    name = file.with_suffix("") if file.suffix in PACKED else file
    return name.suffix in ENDINGS


def _nearest(place: Path) -> str:
    """What does exist around a path that does not."""
    folder = place.absolute().parent
    while not folder.is_dir():
        place, folder = folder, folder.parent
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(place.name, names, n=1, cutoff=0.5)
    return f"Did you mean {folder / near[0]}?" if near else f"{folder} is there, but nothing of a similar name in it."


def _hub_records(part: CorpusPart, chance: random.Random, column: _Column) -> Iterator[Any]:
    """Records of a hub dataset, streamed; only the column asked for is transferred where the format allows."""
    import datasets

    count = 0
    try:
        stream = datasets.load_dataset(part.dataset, part.subset, split=part.split, streaming=True)
        if stream.column_names:
            stream = stream.select_columns([column.choose(list(stream.column_names))])
        # Shards in random order; records are shuffled further on, for every kind of origin alike.
        for record in stream.shuffle(seed=chance.randrange(2**31), buffer_size=1):
            count += 1
            yield record
    except CorpusError:
        raise
    # The hub's client, its file systems and its formats each have their own errors, and all mean this.
    except Exception as error:
        raise CorpusError(_hub_trouble(part, count, error)) from error


def _hub_trouble(part: CorpusPart, count: int, error: Exception) -> str:
    after = f"stopped after {count:,} records" if count else "cannot be opened"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"Hub dataset {part.dataset!r} {after}: {reason}. Check the name, `subset:` and `split:`, "
        "and the network; without one, give a local file as `path:`."
    )
