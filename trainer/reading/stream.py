"""Streaming: training batches from rows that are harvested as they are needed, and kept nowhere.

The store of such a run holds the first rows of the text. The stream begins with them and goes on with what comes after
them in the text. Rows wait in a buffer: when it is full they are shuffled, half of them are given out, and the rest is
mixed with the rows that come next. What waits is written beside a checkpoint, so that a training that was killed goes
on from there without running the models again on what it has seen.
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

from trainer.corpus.mix import documents
from trainer.errors import StoreError
from trainer.models.source import Source
from trainer.reading.activations import ActivationReader
from trainer.recipe.recipe import Recipe
from trainer.run.folder import published
from trainer.run.progress import Progress
from trainer.store.batches import Parts
from trainer.store.store import ActivationStore, Rows

BLOCK = 8192
"""Rows of the store that are taken at a time."""


@dataclass
class Position:
    """How far a stream is."""

    entered: int = 0
    """Rows that came into the buffer so far."""
    stored: int = 0
    """Of them, rows of the store."""
    documents: int = 0
    """Documents taken from the corpus."""
    rounds: int = 0
    """How often the buffer was shuffled."""
    ended: bool = False
    """Whether nothing more comes."""


class Stream:
    """The rows that a run trains on, once each."""

    def __init__(
        self, recipe: Recipe, store: ActivationStore, load: Callable[[], Sequence[Source]], progress: Progress
    ) -> None:
        """`store` holds the first rows; `load` gives the models, cut at their hookpoints, when they are needed.

        Raises StoreError for a store that does not say where in the text it ends.
        """
        assert recipe.harvest.stream is not None, "a recipe that streams says how"
        statistics = store.manifest.statistics
        if not {"documents", "medians"} <= statistics.keys():
            raise StoreError(f"{store.path} does not say where in the text it ends. Harvest it again.")
        self._recipe, self._store, self._load, self._progress = recipe, store, load, progress
        self._batch = recipe.training.batch
        self._capacity = max(recipe.harvest.stream.buffer, 2 * self._batch)
        self._medians = dict(statistics["medians"])
        self._waiting: list[Rows] = []
        self._live: Iterator[Rows] | None = None
        self.position = Position(documents=int(statistics["documents"]))

    @property
    def steps(self) -> int:
        """Batches there will be, unless the text ends early."""
        return self._recipe.harvest.rows // self._batch

    def rounds(self) -> Iterator[Iterator[Rows]]:
        """Batches in rounds; between two rounds the stream can be saved. Each round must be used up."""
        while not self.position.ended or self._rows() >= self._batch:
            self._fill()
            yield self._given_out()

    def _rows(self) -> int:
        return sum(map(_length, self._waiting))

    def _fill(self) -> None:
        """Take in rows until the buffer is full or nothing more comes."""
        while self._rows() < self._capacity and not self.position.ended:
            some = self._next()
            room = self._recipe.harvest.rows - self.position.entered
            if some is None or room <= 0:
                self.position.ended = True
                return
            self._waiting.append({name: x[:room] for name, x in some.items()})
            self.position.entered += min(room, _length(some))

    def _given_out(self) -> Iterator[Rows]:
        """Shuffle what waits and give out half of it in batches, or all when nothing more comes."""
        seed = self._recipe.training.shuffle_seed * 1_000_003 + self.position.rounds
        count = self._rows()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        wanted = count if self.position.ended else max(count // 2, self._batch)
        batches, parts = min(wanted, count) // self._batch, Parts(self._waiting)
        for number in range(batches):
            yield parts.take(order[number * self._batch : (number + 1) * self._batch])
        self._waiting = [] if self.position.ended else [parts.take(order[batches * self._batch :])]
        self.position.rounds += 1

    def _next(self) -> Rows | None:
        """Some more rows: of the store as long as it has any, then of the text; None at the end."""
        position = self.position
        if position.stored < self._store.count("train"):
            some = self._store.rows_from("train", position.stored, BLOCK)
            position.stored += _length(some)
            return some
        if self._live is None:
            self._live = self._harvested()
        return next(self._live, None)

    def _harvested(self) -> Iterator[Rows]:
        """Training rows pool by pool, from the text after what is on record."""
        pools = ActivationReader(self._recipe, self._load(), medians=self._medians, counts=Counter())
        corpus = iter(documents(pools.corpus, notice=self._progress.say))
        next(islice(corpus, self.position.documents, self.position.documents), None)
        while texts := pools.draw(corpus):
            self.position.documents += len(texts)
            # Held-out documents beyond the sample are left out: nobody would read them.
            sequences = pools.sequences([text for text in texts if not text.held_out])
            if sequences:
                rows = pools.activations(sequences)
                keep = pools.kept(rows, sequences)
                yield {name: x[keep] for name, x in rows.items()}

    def save(self, path: Path) -> None:
        """Write what waits and how far the stream is, between two rounds."""
        whole = {name: torch.cat([rows[name] for rows in self._waiting]) for name in self._store.widths}
        with published(path) as draft:
            save_file(whole, draft, {"position": json.dumps(asdict(self.position))})

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            self.position = Position(**json.loads(file.metadata()["position"]))
            self._waiting = [{name: file.get_tensor(name).clone() for name in self._store.widths}]


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))
