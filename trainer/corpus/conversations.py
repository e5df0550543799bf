"""Names the conversation that each record of a corpus part belongs to.

Some files cut long conversations into several records: ShareGPT's have ids such as `QWJhYvA_0` and `QWJhYvA_3`. Records
of one conversation are not independent.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

from trainer.corpus.document import Message, clean

Content = str | tuple[Message, ...]
"""Content of a document: a text, or the turns of a chat."""

PROBED_IDS = 100
"""Whether ids end in the number of a part is seen from the first so many."""
LEAST_STEMS = 0.1
"""Share of them that must differ in what precedes the number: those of `train_0`, `train_1`, … do not."""

_NUMBERED = re.compile(r"(.+)_\d+")


class Record(NamedTuple):
    """A document as it was read."""

    content: Content
    id: str | None
    """Value of its field that names its conversation, perhaps with the number of a part; None without one."""


def with_conversations(records: Iterable[Record]) -> Iterator[Record]:
    """The same records, with the name of the conversation as `id`: where ids are numbered parts, without the number."""
    stream = iter(records)
    first = list(islice(stream, PROBED_IDS))
    numbered = _are_numbered([record.id for record in first if record.id is not None])
    for record in chain(first, stream):
        match = _NUMBERED.fullmatch(record.id) if numbered and record.id is not None else None
        yield record if match is None else record._replace(id=match[1])


def id_text(value: object) -> str | None:
    """An id as text; None for what is no id."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    return clean(str(value))


def _are_numbered(ids: list[str]) -> bool:
    stems = [match[1] for name in ids if (match := _NUMBERED.fullmatch(name))]
    return len(stems) * 2 > len(ids) and len(set(stems)) >= LEAST_STEMS * len(stems)
