"""Stage 1: runs the corpus through every source and stores the aligned activations.

Documents are processed in pools. A pool becomes at most two shards (training and held-out rows) and one part of the
table of sequences, and is then recorded in `harvest.json`: an interrupted harvest resumes after the last recorded pool.
"""

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

from trainer.corpus.mix import open_corpus
from trainer.errors import CorpusError, StoreError
from trainer.models.source import Source
from trainer.reading.activations import BARREN_POOLS, ActivationReader
from trainer.reading.alignment import NO_END
from trainer.reading.inputs import Inputs
from trainer.reading.sequences import MIN_ANCHORS, Sequence, TokenizedDocument
from trainer.reading.sequences_table import sequences_table
from trainer.reading.template_tally import TemplateTally
from trainer.recipe.fitting import HarvestRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.checksum import known_sha256, sha256_of
from trainer.run.folder import atomic_write, discard, read_json, write_json
from trainer.run.progress import Progress
from trainer.store.store import VERSION, ActivationStore, Rows, Shard, Split, StoredSource, StoreWriter

WELL_COVERED = 0.8
"""A document is well covered if at least this share of its possible anchors are anchors."""


@dataclass
class HarvestRecord:
    """State of an unfinished harvest, stored as `harvest.json` with the shards."""

    fingerprint: str
    store_version: int
    """Version of the format of its shards and sequences."""
    inputs: Inputs
    """Fingerprints of the models and texts that are read."""
    documents: int = 0
    """Documents read from the corpus."""
    used: int = 0
    """Number of leading documents that were run or gave no sequence; the last pool may end with unused ones."""
    sequences: int = 0
    parts: list[str] = field(default_factory=list)
    """SHA-256 of every part of the table of sequences written."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    medians: dict[str, float] = field(default_factory=dict)
    """Median norm per source in the first pool; the unit of `outlier_norm`."""
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What became of chats, per source that reads them by its template; see `TemplateTally`."""
    counts: dict[str, int] = field(default_factory=dict)
    """Counts by `<corpus part>/<source index or empty>/<measure>`."""


class Harvest:
    """Harvests a recipe's sources into a store; resumable."""

    def __init__(
        self, recipe: Recipe, sources: list[Source], path: Path, fingerprint: str, inputs: Inputs | None = None
    ) -> None:
        """Resume the harvest at `path` if it has the same fingerprint and inputs, else start from scratch."""
        assert recipe.corpus is not None, "a harvest needs a corpus"
        self.recipe, self.corpus, self.sources, self.path = recipe, recipe.corpus, sources, path
        self.record = HarvestRecord(fingerprint, VERSION, inputs or {})
        self.discarded: str | None = None
        """Why an unfinished harvest was not resumed; None if there was none, or if it is resumed."""
        if any(path.glob("*")):
            found = _read_record(path / "harvest.json")
            self.discarded = _obstacle(path, found, self.record)
            self.record = found if found is not None and self.discarded is None else self.record
        if not self.record.documents:
            discard(path)
        shards = tuple(Shard(**shard) for shard in self.record.shards)
        self.writer = StoreWriter(path, tuple(map(_stored_source, sources)), shards)
        self.counts: Counter[str] = Counter(self.record.counts)
        self.reader = ActivationReader(recipe, sources, medians=self.record.medians, counts=self.counts)
        self.reader.templates |= {name: TemplateTally(**tally) for name, tally in self.record.templates.items()}
        self.seconds = self.reader.seconds
        """Seconds per kind of work since construction."""

    def run(self, progress: Progress) -> ActivationStore:
        """Harvest until there are enough training rows.

        Raises CorpusError if the corpus gives no rows to train on or none held out, StoreError if the coverage is below
        `minimum_coverage`, SourceError if a source gives no finite row, or its template renders too few chats.
        """
        if self.discarded is not None:
            progress.notify(f"harvest: starting over, because {self.discarded}")
        wanted = self.recipe.harvest.stored_rows
        corpus = open_corpus(self.corpus, notify=progress.notify)
        stream = iter(corpus)
        next(islice(stream, self.record.documents, self.record.documents), None)
        barren = 0
        with progress.task("harvest", total=wanted, initial=min(self.writer.rows("train"), wanted)) as task:
            while (before := self.writer.rows("train")) < wanted:
                documents = self.reader.next_pool(stream)
                if not documents or barren == BARREN_POOLS:
                    ended = "the corpus ended" if not documents else "the corpus gave no more rows"
                    progress.notify(f"harvest: {ended} after {before:,} of {wanted:,} rows")
                    break
                self._harvest_pool(documents, wanted - before)
                barren = 0 if self.writer.rows("train") > before else barren + 1
                task.advance(self.writer.rows("train") - before)
        for line in self.reader.lines():
            progress.notify(f"harvest: {line}")
        for tally in corpus.tallies:
            progress.log(f"corpus: {tally.summary()}")
        progress.log("harvest: " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in self.seconds.items()))
        self._require_rows()
        progress.notify(coverage_line(self.counts))
        return self._finish()

    def _require_rows(self) -> None:
        """Raise CorpusError, in terms of the recipe, unless there are rows to train on and rows held out."""
        train, held_out = self.writer.rows("train"), self.writer.rows("held_out")
        if train and held_out:
            return
        documents = f"{self.record.documents:,} documents"
        if not self.record.sequences:
            raise CorpusError(
                f"The corpus gave no rows: none of its {documents} has {MIN_ANCHORS} tokens that end together in all "
                f"sources within corpus.context ({self.corpus.context}). Give longer texts, or a larger corpus.context."
            )
        missing = "held out, which every measure needs" if train else "to train on"
        raise CorpusError(
            f"The corpus gave {train + held_out:,} rows from {documents}, and none {missing}; corpus.held_out is "
            f"{self.corpus.held_out:g}. Add documents to corpus.mix, or change corpus.held_out or harvest.rows; parts "
            "of one conversation, and texts that share most of their wording, count as one document here."
        )

    def _harvest_pool(self, documents: list[TokenizedDocument], wanted: int) -> None:
        """Run one pool through every source, write its shards and record it."""
        with self.reader.timed("alignment"):
            sequences = _limit_rows(self.reader.sequences(documents), wanted)
        if not sequences:  # all documents are too short
            self._save_record(len(documents), 0)
            return
        with self.reader.timed("models"):
            rows = self.reader.activations(sequences)
        with self.reader.timed("storing"):
            self._store(rows, sequences)
            self.record.used = sequences[-1].document + 1
            self._save_record(len(documents), len(sequences))

    def _store(self, rows: Rows, sequences: list[Sequence]) -> None:
        """Write one pool's rows that pass the filters, and its part of the table of sequences."""
        locations = _locations(sequences, first=self.record.sequences)
        keep = self.reader.keep_mask(rows, sequences)
        held_out = torch.from_numpy(np.repeat([s.held_out for s in sequences], [len(s.anchors) for s in sequences]))
        splits: tuple[tuple[Split, Tensor], ...] = (("train", keep & ~held_out), ("held_out", keep & held_out))
        for split, mask in splits:
            selected = torch.nonzero(mask).squeeze(1)
            self.writer.add(
                {k: x[selected] for k, x in rows.items()}, {k: x[selected] for k, x in locations.items()}, split
            )
        self._count_coverage(sequences, keep)
        self._write_part(sequences)

    def _count_coverage(self, sequences: list[Sequence], keep: Tensor) -> None:
        """Add the pool's coverage per corpus part to the counts."""
        by_document: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            by_document.setdefault(sequence.document, []).append(sequence)
        for of_document in by_document.values():
            corpus = of_document[0].corpus
            anchors, possible = sum(len(s.anchors) for s in of_document), sum(s.possible for s in of_document)
            counted = {"documents": 1, "sequences": len(of_document), "anchors": anchors, "possible": possible}
            counted["documents_over_80"] = int(anchors >= WELL_COVERED * possible)
            for measure, count in counted.items():
                self.counts[f"{corpus}//{measure}"] += count
            for index in range(len(self.sources)):
                self.counts[f"{corpus}/{index}/tokens"] += sum(
                    int((s.ends[index] != NO_END).sum()) for s in of_document
                )
        first = 0
        for sequence in sequences:
            self.counts[f"{sequence.corpus}//kept"] += int(keep[first : first + len(sequence.anchors)].sum())
            first += len(sequence.anchors)

    def _write_part(self, sequences: list[Sequence]) -> None:
        tokenizers = [source.tokenizer for source in self.sources]
        part = _part(self.path, len(self.record.parts))
        with atomic_write(part) as draft:
            pq.write_table(sequences_table(sequences, tokenizers, first=self.record.sequences), draft)
        self.record.parts.append(sha256_of(part))

    def _save_record(self, documents: int, sequences: int) -> None:
        record = self.record
        record.documents += documents
        record.sequences += sequences
        record.shards = [asdict(shard) for shard in self.writer.shards]
        record.counts = dict(self.counts)
        record.templates = {name: asdict(tally) for name, tally in self.reader.templates.items()}
        write_json(self.path / "harvest.json", asdict(record))
        _check_coverage(self.counts, self.recipe.harvest)

    def _finish(self) -> ActivationStore:
        parts = [_part(self.path, number) for number in range(len(self.record.parts))]
        table = pa.concat_tables([pq.read_table(part) for part in parts])
        refusing = {name: tally for name, tally in self.record.templates.items() if tally["plain"]}
        statistics = {"counts": dict(self.counts), "medians": self.record.medians, "documents": self.record.used}
        statistics |= {"templates": refusing} if refusing else {}
        self.writer.finish(table, statistics, self.record.inputs)
        for part in [*parts, self.path / "harvest.json"]:
            part.unlink(missing_ok=True)
        return ActivationStore.open(self.path)


def coverage_line(counts: Counter[str]) -> str:
    """One line about coverage and dropped rows."""

    def total(measure: str) -> int:
        return sum(count for key, count in counts.items() if key.endswith(f"/{measure}"))

    documents, covered = total("documents"), total("documents_over_80")
    return (
        f"harvest: {total('anchors') / max(total('possible'), 1):.1%} of the possible anchors are common to all "
        f"tokenizers; {covered:,} of {documents:,} documents ({covered / max(documents, 1):.1%}) keep at least "
        f"{WELL_COVERED:.0%} of theirs; {total('outliers'):,} outlier and {total('special'):,} special tokens left out"
    )


def _stored_source(source: Source) -> StoredSource:
    hookpoint = f"{source.recipe.hookpoint}.{source.recipe.layer}"
    return StoredSource(source.name, source.width, "bfloat16", source.recipe.model, source.revision, hookpoint)


def _limit_rows(sequences: list[Sequence], wanted: int) -> list[Sequence]:
    """The leading sequences with about `wanted` training rows, and 2% more because some rows will be dropped."""
    rows, kept = 0, []
    for sequence in sequences:
        if rows >= wanted * 1.02:
            break
        kept.append(sequence)
        rows += 0 if sequence.held_out else len(sequence.anchors)
    return kept


def _locations(sequences: list[Sequence], *, first: int) -> dict[str, Tensor]:
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


def _part(path: Path, number: int) -> Path:
    """File of one part of the table of sequences."""
    return path / f"sequences-{number:05d}.parquet"


def _read_record(path: Path) -> HarvestRecord | None:
    """The record of an unfinished harvest; None if it is damaged."""
    try:
        return HarvestRecord(**read_json(path))
    except TypeError:
        return None


def _obstacle(path: Path, found: HarvestRecord | None, wanted: HarvestRecord) -> str | None:
    """Why an unfinished harvest cannot be resumed; None if it can."""
    if found is None:
        return "its record harvest.json is missing or damaged"
    if found.store_version != wanted.store_version:
        return "it was begun by another version of Crossdiff"
    if found.fingerprint != wanted.fingerprint:
        return "it was begun with other settings"
    if found.inputs != wanted.inputs:
        return "the models or the texts have changed since it was begun"
    try:
        sums = {path / shard["file"]: shard["sha256"] for shard in found.shards}
        sums |= {_part(path, number): sha256 for number, sha256 in enumerate(found.parts)}
        damaged = next((file for file, sha256 in sums.items() if known_sha256(file) != sha256), None)
    except (OSError, TypeError, KeyError) as error:
        return f"a file of it is missing or damaged ({error})"
    return None if damaged is None else f"{damaged.name} is damaged"
