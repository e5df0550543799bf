"""Reads texts and chats of one corpus part from the hub, from disk or from a package."""

import difflib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.corpus.chats import CHAT_COLUMNS, has_tool_turns, parse_chat
from trainer.corpus.conversations import Content, Record, id_text
from trainer.corpus.document import clean
from trainer.corpus.file_type import KINDS, is_metadata, visible_files
from trainer.corpus.records import file_kind, has_known_suffix, read_records
from trainer.corpus.tally import Notify, PartTally
from trainer.errors import CorpusError
from trainer.pypi import archives
from trainer.recipe.fitting import CorpusPart

PROBED_RECORDS = 100
"""A part is rejected if most of its first so many records hold no text."""
CHAT_ID = "id"
"""Column or key with the conversation of a record of a chat part, where it exists and the recipe names none."""
_WILDCARDS = frozenset("*?[")


def read_documents(part: CorpusPart, tally: PartTally, rng: random.Random) -> Iterator[Record]:
    """Yield every text or chat of a part in the order of its files; the files themselves are shuffled.

    Raises CorpusError if the origin or the column does not exist, if most of the first records hold no text, or none of
    a file does.
    """
    columns = _Columns(part)
    found = rejected = 0
    for origin, records in _origins(part, tally, rng, columns):
        columns.origin = origin
        found_before, rejected_before = found, rejected
        for record in records:
            value, conversation = columns.values(record)
            content = _content(value, part, tally)
            if content is None:
                rejected += 1
            else:
                found += 1
                yield Record(content, id_text(conversation))
            if found + rejected == PROBED_RECORDS and rejected > found:
                raise CorpusError(_without_text(part, tally, columns, rejected, found + rejected))
        if rejected > rejected_before and found == found_before:
            raise CorpusError(
                _without_text(part, tally, columns, rejected - rejected_before, rejected - rejected_before)
            )
    if rejected > found:
        raise CorpusError(_without_text(part, tally, columns, rejected, found + rejected))


def _without_text(part: CorpusPart, tally: PartTally, columns: "_Columns", rejected: int, records: int) -> str:
    """What to say of an origin most of whose records hold no text."""
    where = f"Corpus part {tally.name!r}: {rejected:,} of {records:,} records"
    if tally.tools > rejected // 2:
        return (
            f"{where} of {columns.origin} are chats with turns of tools, which templates of different models do not "
            "agree on. Leave those turns out of the file, or give other chats."
        )
    kind = "chats (lists of turns with `role` and `content`)" if part.format == "chat" else "text"
    return (
        f"{where} hold no {kind} in column {columns.text!r} of {columns.origin}. "
        "Set `column:` or `format:` of this part."
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


class _Columns:
    """The columns that hold the text and, if there is one, the conversation; chosen on the first record."""

    def __init__(self, part: CorpusPart) -> None:
        self._part = part
        self._chosen = False
        self.text = part.column
        self._conversation: str | None = None
        self.origin = part.dataset or part.path or ""
        """The file or data set that is being read, for messages."""

    def choose(self, names: list[str]) -> list[str]:
        """Choose the columns to read among those that exist. Raises CorpusError if there is none for the text."""
        wanted = [self._part.column]
        if self._part.format == "chat" and self._part.column == "text":
            wanted = [*CHAT_COLUMNS, "text"]
        self.text = next((name for name in wanted if name in names), "")
        if not self.text:
            raise CorpusError(self._missing(self._part.column, names, "column"))
        self._conversation = self._part.conversation
        if self._conversation is None and self._part.format == "chat" and CHAT_ID in names:
            self._conversation = CHAT_ID
        if self._conversation is not None and self._conversation not in names:
            raise CorpusError(self._missing(self._conversation, names, "conversation"))
        self._chosen = True
        return list(dict.fromkeys(filter(None, (self.text, self._conversation))))

    def _missing(self, wanted: str, names: list[str], key: str) -> str:
        near = difflib.get_close_matches(wanted, names, n=1)
        return (
            f"{self.origin} has no column {wanted!r}; it has {', '.join(map(repr, names)) or 'none'}. "
            f"Set `{key}: {near[0] if near else '...'}` of this part."
        )

    def values(self, record: Any) -> tuple[Any, Any]:
        """Text and conversation of a record; a record that is not a mapping is a text."""
        if not isinstance(record, Mapping):
            return record, None
        if not self._chosen:
            self.choose([str(name) for name in record])
        return record.get(self.text), None if self._conversation is None else record.get(self._conversation)


def _content(value: Any, part: CorpusPart, tally: PartTally) -> Content | None:
    """The text or chat in a value; None if there is none, which is then counted."""
    content = parse_chat(value) if part.format == "chat" else clean(value) if isinstance(value, str) else None
    if content is None and part.format == "chat" and has_tool_turns(value):
        tally.tools += 1
        tally.notify_once(f"Corpus part {tally.name!r}: chats with turns of tools are left out.")
    elif content is None:
        tally.unreadable += 1
    return content


def _origins(
    part: CorpusPart, tally: PartTally, rng: random.Random, columns: _Columns
) -> Iterator[tuple[str, Iterator[Any]]]:
    """Yield every file or data set of a part, with the records in it."""
    if part.dataset is not None:
        yield part.dataset, _hub_records(part, rng, columns)
        return
    assert part.path is not None, "a part has a dataset or a path"
    if archives.is_address(part.path):
        files = [archives.fetch(part.path, "corpora", notify=tally.notify)]
    else:
        files = find_files(part, tally.notify_once)
    rng.shuffle(files)
    for file in files:
        yield str(file), read_records(file, tally, columns.choose)


def find_files(part: CorpusPart, notify: Notify = lambda _: None) -> list[Path]:
    """The files that a part's path, a folder or a glob pattern, refers to.

    `notify` is called with a message about files that are left out. Raises CorpusError if there are none.
    """
    assert part.path is not None, "only for parts with a path"
    path, location = part.path, Path(part.path).expanduser()
    if location.is_file():
        return [location]
    if location.is_dir():
        return _files_in(location, part.split, notify)
    if _WILDCARDS & set(path):
        fixed = next(index for index, step in enumerate(location.parts) if _WILDCARDS & set(step))
        folder = Path(*location.parts[:fixed])
        found = sorted(file for file in folder.glob(str(Path(*location.parts[fixed:]))) if file.is_file())
        if found:
            return found
        raise CorpusError(f"No file matches {path}. Check {folder.absolute()}.")
    if location.is_symlink():
        raise CorpusError(f"{path} is a link to {location.readlink()}, which does not exist. Correct the link.")
    if location.exists():
        raise CorpusError(f"{path} is neither a file nor a folder. Write its content to a file and give that.")
    raise CorpusError(f"No file or folder at {path}. {_suggestion(location)}")


def _files_in(folder: Path, split: str, notify: Notify) -> list[Path]:
    """The files of a folder that hold documents; of a saved data set with splits, those of one split.

    Beside records, files that describe them are left out. Raises CorpusError if there are none.
    """
    if (folder / "dataset_dict.json").is_file():
        if not (folder / split).is_dir():
            splits = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
            raise CorpusError(f"{folder} has no split {split!r}; it has {splits}. Set `split:` of this part.")
        folder = folder / split
    files = list(visible_files(folder))
    found = [file for file in files if has_known_suffix(file)]
    if any(file_kind(file) != "txt" for file in found):
        found = [file for file in found if not is_metadata(file)]
    if not found:
        raise CorpusError(f"{folder} holds no file that ends in {', '.join(KINDS)} (or these with .gz or .zst).")
    if left_out := [file.name for file in files if file not in set(found)]:
        names = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else "")
        notify(f"corpus: {names} in {folder} left out, which hold no documents")
    return found


def _suggestion(location: Path) -> str:
    """The nearest existing path to one that does not exist, as a sentence."""
    folder = location.absolute().parent
    while not folder.is_dir():
        location, folder = folder, folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}."
    near = difflib.get_close_matches(location.name, names, n=1, cutoff=0.5)
    return f"Did you mean {folder / near[0]}?" if near else f"{folder} exists, but holds nothing of a similar name."


def _hub_records(part: CorpusPart, rng: random.Random, columns: _Columns) -> Iterator[Any]:
    """Stream the records of a hub dataset; only the wanted columns are transferred where the format allows it."""
    import datasets

    count = 0
    try:
        stream = datasets.load_dataset(part.dataset, part.subset, split=part.split, streaming=True)
        if stream.column_names:
            stream = stream.select_columns(columns.choose(list(stream.column_names)))
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
