"""Training batches from rows that are harvested on demand and not stored.

The store of such a run holds the first rows of the corpus. The stream begins with them and continues with the rows
after them. Rows collect in a buffer: when it is full, it is shuffled and half of it is yielded; the rest is mixed with
the next rows. The buffer is saved with each checkpoint, so that an interrupted training resumes without running the
models again on what it has seen.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainer.corpus.mix import open_corpus
from trainer.errors import StoreError
from trainer.models.source import Source
from trainer.reading.activations import BARREN_POOLS, ActivationReader
from trainer.recipe.recipe import Recipe
from trainer.recipe.schedule import Schedule
from trainer.run.folder import atomic_write
from trainer.run.progress import Progress
from trainer.store.batches import ConcatenatedRows
from trainer.store.store import ActivationStore, Rows

ROWS_PER_READ = 8192
"""Rows read from the store at a time."""


@dataclass
class StreamPosition:
    """How far a stream has got; saved as JSON with the buffer."""

    entered: int = 0
    """Rows put into the buffer so far."""
    stored: int = 0
    """Those of them that came from the store."""
    documents: int = 0
    """Documents taken from the corpus."""
    rounds: int = 0
    """Number of times the buffer was shuffled."""
    ended: bool = False
    """Whether all rows have been put into the buffer."""


class ActivationStream:
    """Yields each training row of a run once, in shuffled batches."""

    def __init__(
        self, recipe: Recipe, store: ActivationStore, load: Callable[[], Sequence[Source]], progress: Progress
    ) -> None:
        """`store` holds the first rows; `load` loads the models, cut at their hookpoints, when they are needed.

        Raises StoreError if the store does not record where in the corpus it ends.
        """
        assert recipe.harvest.stream is not None, "only for recipes with harvest.stream"
        statistics = store.manifest.statistics
        if not {"documents", "medians"} <= statistics.keys():
            raise StoreError(f"{store.path} does not record where in the corpus it ends. Harvest it again.")
        self._recipe, self._store, self._load, self._progress = recipe, store, load, progress
        self._batch = Schedule.of(recipe, recipe.harvest.rows, store.widths).batch
        self._capacity = max(recipe.harvest.stream.buffer, 2 * self._batch)
        self._medians = dict(statistics["medians"])
        self._buffer: list[Rows] = []
        self._reader: ActivationReader | None = None
        self._fresh: Iterator[Rows] | None = None
        self.position = StreamPosition(documents=int(statistics["documents"]))

    @property
    def steps(self) -> int:
        """Number of batches, unless the corpus ends early."""
        return self._recipe.harvest.rows // self._batch

    def rounds(self) -> Iterator[Iterator[Rows]]:
        """Yield rounds of batches. Each round must be consumed completely; `save` is allowed between two rounds."""
        while not self.position.ended or self._buffered_rows() >= self._batch:
            self._fill()
            yield self._shuffled_batches()

    def _buffered_rows(self) -> int:
        return sum(map(_row_count, self._buffer))

    def _fill(self) -> None:
        """Add rows until the buffer is full or there are no more."""
        while self._buffered_rows() < self._capacity and not self.position.ended:
            rows = self._next_rows()
            remaining = self._recipe.harvest.rows - self.position.entered
            if rows is None or remaining <= 0:
                self.position.ended = True
                self._tell_losses()
                return
            self._buffer.append({name: x[:remaining] for name, x in rows.items()})
            self.position.entered += min(remaining, _row_count(rows))

    def _tell_losses(self) -> None:
        """Say what of the texts that this process read some source did not read as asked for."""
        for line in () if self._reader is None else self._reader.lines():
            self._progress.notify(f"train: beyond the stored sample, {line}")

    def _shuffled_batches(self) -> Iterator[Rows]:
        """Shuffle the buffer and yield half of it in batches; all of it if no rows follow."""
        seed = self._recipe.training.shuffle_seed * 1_000_003 + self.position.rounds
        count = self._buffered_rows()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        available = count if self.position.ended else max(count // 2, self._batch)
        batches, buffered = min(available, count) // self._batch, ConcatenatedRows(self._buffer)
        for number in range(batches):
            yield buffered.take(order[number * self._batch : (number + 1) * self._batch])
        self._buffer = [] if self.position.ended else [buffered.take(order[batches * self._batch :])]
        self.position.rounds += 1

    def _next_rows(self) -> Rows | None:
        """The next rows: from the store as long as it has any, then from the models; None at the end."""
        position = self.position
        if position.stored < self._store.count("train"):
            rows = self._store.rows_from("train", position.stored, ROWS_PER_READ)
            position.stored += _row_count(rows)
            return rows
        if self._fresh is None:
            self._fresh = self._fresh_rows()
        return next(self._fresh, None)

    def _fresh_rows(self) -> Iterator[Rows]:
        """Harvest training rows pool by pool, beginning after the documents counted in the position."""
        reader = self._reader = ActivationReader(self._recipe, self._load(), medians=self._medians, counts=Counter())
        corpus = iter(open_corpus(reader.corpus, notify=self._progress.notify))
        next(islice(corpus, self.position.documents, self.position.documents), None)
        barren = 0
        while barren < BARREN_POOLS and (documents := reader.next_pool(corpus)):
            barren += 1
            self.position.documents += len(documents)
            # Held-out documents beyond the stored sample are skipped: nothing would use their rows.
            sequences = reader.sequences([document for document in documents if not document.held_out])
            if sequences:
                rows = reader.activations(sequences)
                keep = reader.keep_mask(rows, sequences)
                barren = 0 if bool(keep.any()) else barren
                yield {name: x[keep] for name, x in rows.items()}

    def save(self, path: Path) -> None:
        """Save the buffer and the position; only between two rounds."""
        buffered = {name: torch.cat([rows[name] for rows in self._buffer]) for name in self._store.widths}
        with atomic_write(path) as draft:
            save_file(buffered, draft, {"position": json.dumps(asdict(self.position))})

    def restore(self, path: Path) -> None:
        """Restore what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            self.position = StreamPosition(**json.loads(file.metadata()["position"]))
            self._buffer = [{name: file.get_tensor(name).clone() for name in self._store.widths}]


def _row_count(rows: Rows) -> int:
    return len(next(iter(rows.values())))
