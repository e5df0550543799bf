"""Stage 1: run the corpus through every source and store the aligned activations.

Work goes in pools of documents. A pool becomes at most two shards (training and held-out rows) and a part of the
table of sequences, and is then on record: an interrupted harvest goes on after the last recorded pool.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainer.corpus.mix import documents
from trainer.errors import CorpusError, StoreError
from trainer.models.source import Source
from trainer.reading.activations import ActivationReader
from trainer.reading.alignment import NO_END
from trainer.reading.documents_table import table_of
from trainer.reading.sequences import Sequence, Text
from trainer.recipe.fitting import HarvestRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.folder import discard, published, write_json
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows, Shard, Split, StoredSource, StoreWriter

ENOUGH = 0.8
"""A document counts as well covered when this share of its possible anchors is there."""


@dataclass
class Record:
    """What an unfinished harvest has done; kept beside the shards."""

    fingerprint: str
    documents: int = 0
    """Documents taken from the corpus."""
    used: int = 0
    """The first so many of them were run or had nothing to run; of the last pool a rest may not be needed."""
    sequences: int = 0
    parts: int = 0
    """Parts of the table of sequences written."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    medians: dict[str, float] = field(default_factory=dict)
    """Median norm per source in the first pool; outliers are counted in it."""
    counts: dict[str, int] = field(default_factory=dict)
    """`<corpus>/<source or empty>/<measure>` to count."""


class Harvest:
    """A harvest in progress."""

    def __init__(self, recipe: Recipe, sources: list[Source], path: Path, fingerprint: str) -> None:
        """Go on with what is at `path` if it was begun for the same fingerprint, else begin anew."""
        assert recipe.corpus is not None, "a harvest needs a corpus"
        self.recipe, self.corpus, self.sources, self.path = recipe, recipe.corpus, sources, path
        self.record = _read_record(path / "harvest.json", fingerprint)
        if not self.record.documents:
            discard(path)
        shards = tuple(Shard(**shard) for shard in self.record.shards)
        self.writer = StoreWriter(path, tuple(map(_described, sources)), shards)
        self.counts: Counter[str] = Counter(self.record.counts)
        self.pools = ActivationReader(recipe, sources, medians=self.record.medians, counts=self.counts)
        self.seconds = self.pools.seconds
        """Where the time went since this object was made."""

    def run(self, progress: Progress) -> ActivationStore:
        """Harvest until there are enough training rows. Raises CorpusError when the corpus ends with none."""
        wanted = self.recipe.harvest.stored_rows
        corpus = documents(self.corpus, notice=progress.say)
        stream = iter(corpus)
        next(islice(stream, self.record.documents, self.record.documents), None)
        with progress.task("harvest", total=wanted, before=min(self.writer.rows("train"), wanted)) as task:
            while (before := self.writer.rows("train")) < wanted:
                texts = self.pools.draw(stream)
                if not texts:
                    progress.say(f"harvest: the corpus ended after {before:,} of {wanted:,} rows")
                    break
                self._harvest(texts, wanted - before)
                task.advance(self.writer.rows("train") - before)
        for tally in corpus.tallies:
            progress.log(f"corpus: {tally.summary()}")
        progress.log("harvest: " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in self.seconds.items()))
        if not self.writer.rows("train"):
            raise CorpusError("The corpus gave no aligned rows. Check `corpus.mix`, and `language` in it.")
        progress.say(coverage_line(self.counts))
        return self._finish()

    def _harvest(self, texts: list[Text], wanted: int) -> None:
        """Run one pool through every source, write its shards and put it on record."""
        with self.pools.timed("alignment"):
            sequences = _enough(self.pools.sequences(texts), wanted)
        if not sequences:  # a pool of texts too short for one
            self._put_on_record(len(texts), 0)
            return
        with self.pools.timed("models"):
            rows = self.pools.activations(sequences)
        with self.pools.timed("storing"):
            self._store(rows, sequences)
            self.record.used = sequences[-1].document + 1
            self._put_on_record(len(texts), len(sequences))

    def _store(self, rows: Rows, sequences: list[Sequence]) -> None:
        """Write what is kept of one pool's activations, and its part of the table of sequences."""
        places = _places(sequences, first=self.record.sequences)
        keep = self.pools.kept(rows, sequences)
        held_out = torch.from_numpy(np.repeat([s.held_out for s in sequences], [len(s.anchors) for s in sequences]))
        splits: tuple[tuple[Split, Tensor], ...] = (("train", keep & ~held_out), ("held_out", keep & held_out))
        for split, mask in splits:
            here = torch.nonzero(mask).squeeze(1)
            self.writer.add({k: x[here] for k, x in rows.items()}, {k: x[here] for k, x in places.items()}, split)
        self._count(sequences, keep)
        self._write_part(sequences)

    def _count(self, sequences: list[Sequence], keep: Tensor) -> None:
        """Coverage per corpus part."""
        by_document: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            by_document.setdefault(sequence.document, []).append(sequence)
        for pieces in by_document.values():
            corpus = pieces[0].corpus
            anchors, possible = sum(len(s.anchors) for s in pieces), sum(s.possible for s in pieces)
            counted = {"documents": 1, "sequences": len(pieces), "anchors": anchors, "possible": possible}
            counted["documents_over_80"] = int(anchors >= ENOUGH * possible)
            for measure, count in counted.items():
                self.counts[f"{corpus}//{measure}"] += count
            for index in range(len(self.sources)):
                self.counts[f"{corpus}/{index}/tokens"] += sum(int((s.ends[index] != NO_END).sum()) for s in pieces)
        first = 0
        for sequence in sequences:
            self.counts[f"{sequence.corpus}//kept"] += int(keep[first : first + len(sequence.anchors)].sum())
            first += len(sequence.anchors)

    def _write_part(self, sequences: list[Sequence]) -> None:
        tokenizers = [source.tokenizer for source in self.sources]
        with published(self.path / f"sequences-{self.record.parts:05d}.parquet") as draft:
            pq.write_table(table_of(sequences, tokenizers, first=self.record.sequences), draft)

    def _put_on_record(self, taken: int, sequences: int) -> None:
        record = self.record
        record.documents += taken
        record.sequences += sequences
        record.parts += bool(sequences)
        record.shards = [asdict(shard) for shard in self.writer.shards]
        record.counts = dict(self.counts)
        write_json(self.path / "harvest.json", asdict(record))
        _check_coverage(self.counts, self.recipe.harvest)

    def _finish(self) -> ActivationStore:
        parts = [self.path / f"sequences-{part:05d}.parquet" for part in range(self.record.parts)]
        table = pa.concat_tables([pq.read_table(part) for part in parts])
        self.writer.finish(
            table, {"counts": dict(self.counts), "medians": self.record.medians, "documents": self.record.used}
        )
        for part in [*parts, self.path / "harvest.json"]:
            part.unlink(missing_ok=True)
        return ActivationStore.open(self.path)


def coverage_line(counts: Counter[str]) -> str:
    """What survived alignment, in one sentence."""

    def total(measure: str) -> int:
        return sum(count for key, count in counts.items() if key.endswith(f"/{measure}"))

    documents, covered = total("documents"), total("documents_over_80")
    return (
        f"harvest: {total('anchors') / max(total('possible'), 1):.1%} of the possible anchors are common to all "
        f"tokenizers; {covered:,} of {documents:,} documents ({covered / max(documents, 1):.1%}) keep at least "
        f"{ENOUGH:.0%} of theirs; {total('outliers'):,} outlier and {total('special'):,} special tokens left out"
    )


def _described(source: Source) -> StoredSource:
    hookpoint = f"{source.recipe.hookpoint}.{source.recipe.layer}"
    return StoredSource(source.name, source.width, "bfloat16", source.recipe.model, source.revision, hookpoint)


def _enough(sequences: list[Sequence], wanted: int) -> list[Sequence]:
    """Sequences up to about the rows still wanted; a few more, because some rows will be dropped."""
    rows, kept = 0, []
    for sequence in sequences:
        if rows >= wanted * 1.02:
            break
        kept.append(sequence)
        rows += 0 if sequence.held_out else len(sequence.anchors)
    return kept


def _places(sequences: list[Sequence], *, first: int) -> dict[str, Tensor]:
    lengths = [len(sequence.anchors) for sequence in sequences]
    sequence = np.repeat(np.arange(first, first + len(sequences)), lengths)
    position = np.concatenate([sequence.positions(0) for sequence in sequences])
    byte_end = np.concatenate([sequence.anchors for sequence in sequences])
    columns = {"sequence": sequence, "position": position, "byte_end": byte_end}
    return {name: torch.from_numpy(column.astype(np.int32)) for name, column in columns.items()}


def _check_coverage(counts: Counter[str], recipe: HarvestRecipe) -> None:
    possible = sum(count for key, count in counts.items() if key.endswith("//possible"))
    anchors = sum(count for key, count in counts.items() if key.endswith("//anchors"))
    if anchors < recipe.minimum_coverage * possible:
        raise StoreError(
            f"Only {anchors / possible:.0%} of the possible anchors are common to all tokenizers, less than "
            f"harvest.minimum_coverage ({recipe.minimum_coverage:.0%}). Lower it if that is what you expect."
        )


def _read_record(path: Path, fingerprint: str) -> Record:
    """The record of an unfinished harvest of the same fingerprint, or a fresh one."""
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return Record(fingerprint)
    return record if record.fingerprint == fingerprint else Record(fingerprint)
