"""Reads documents with all sources and returns aligned activations, one pool of rows at a time."""

import time
from collections import Counter, abc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.corpus.document import Document
from trainer.errors import SourceError
from trainer.models.hookpoint import locate, read
from trainer.models.probe import not_finite
from trainer.models.shapes import check_context
from trainer.models.source import Source
from trainer.reading.alignment import possible_anchors
from trainer.reading.sequences import Sequence, TokenizedDocument, cut_sequences
from trainer.reading.template_tally import TemplateTally
from trainer.reading.tokenize import SourceTokenizer, tokenize_documents
from trainer.recipe.recipe import Recipe
from trainer.store.store import Rows

POOL_ROWS = 32_768
"""Anchors in a pool of documents, which is collected before the models run."""
BARREN_POOLS = 3
"""A corpus is taken to have ended after this many pools in a row without a row to train on."""
DOCUMENTS_PER_READ = 64
"""Documents read from the corpus at a time."""


class ActivationReader:
    """Reads documents with all sources of a recipe, and decides which rows to keep."""

    def __init__(
        self, recipe: Recipe, sources: abc.Sequence[Source], *, medians: dict[str, float], counts: Counter[str]
    ) -> None:
        """`medians` are norms per source, set from the first pool if empty; dropped rows are added to `counts`.

        Raises SourceError if a model has no positions for the corpus's context.
        """
        assert recipe.corpus is not None, "a harvest needs a corpus"
        for source in sources:
            check_context(source.recipe, source.model.config.to_dict(), recipe.corpus.context)
        self.recipe, self.corpus, self.sources = recipe, recipe.corpus, sources
        self.templates = {source.name: TemplateTally() for source in sources if source.has_chat_template}
        self.medians, self.counts = medians, counts
        self.hookpoints = [locate(s, s.recipe.hookpoint, s.recipe.layer) for s in sources]
        self.seconds = dict.fromkeys(("corpus", "alignment", "models", "storing"), 0.0)
        """Seconds per kind of work since construction."""

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Add the duration of the body to `seconds[kind]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def next_pool(self, stream: Iterator[Document]) -> list[TokenizedDocument]:
        """The next pool: documents with about POOL_ROWS anchors together; fewer at the end of the corpus, then none.

        Raises SourceError if a template that the recipe insists on renders too few of the chats so far.
        """
        limit = self.corpus.context * self.corpus.sequences_per_document
        documents: list[TokenizedDocument] = []
        anchors = 0
        while anchors < POOL_ROWS and len(documents) < POOL_ROWS:
            with self.timed("corpus"):
                batch = list(islice(stream, DOCUMENTS_PER_READ))
            if not batch:
                break
            with self.timed("alignment"):
                for document in tokenize_documents(
                    batch, [_tokenizer_of(source) for source in self.sources], tokens=limit
                ):
                    documents.append(document)
                    self._count_chat(document)
                    anchors += min(possible_anchors([tokenized.ends for tokenized in document.tokenized]), limit)
        for source in self.sources:
            if source.name in self.templates:
                self.templates[source.name].check(source.recipe)
        return documents

    def _count_chat(self, document: TokenizedDocument) -> None:
        for index, (source, refusal) in enumerate(zip(self.sources, document.plain_because, strict=True)):
            if document.is_chat and source.name in self.templates:
                self.templates[source.name].add(refusal)
            if refusal is not None:
                self.counts[f"{document.corpus}/{index}/plain_chats"] += 1

    def sequences(self, documents: list[TokenizedDocument]) -> list[Sequence]:
        """Cut the documents into sequences that fit every source's context."""
        bos_ids = [source.bos_id for source in self.sources]
        limits = {"context": self.corpus.context, "max_sequences": self.corpus.sequences_per_document}
        return [one for document in documents for one in cut_sequences(document, bos_ids=bos_ids, **limits)]

    def activations(self, sequences: list[Sequence]) -> Rows:
        """Activations of every source at the anchors of all sequences, in order, bf16 [rows, width]."""
        return {source.name: self._read(index, sequences) for index, source in enumerate(self.sources)}

    def _read(self, index: int, sequences: list[Sequence]) -> Tensor:
        source, hookpoint = self.sources[index], self.hookpoints[index]
        row_starts = np.cumsum([0, *(len(sequence.anchors) for sequence in sequences)])
        out = torch.empty(int(row_starts[-1]), source.width, dtype=torch.bfloat16)
        for batch in batches_by_length([len(s.ids[index]) for s in sequences], self.recipe.harvest.batch_tokens):
            ids = padded([sequences[n].ids[index] for n in batch], source.tokenizer.pad_token_id or 0)
            mask = mask_of([len(sequences[n].ids[index]) for n in batch], source.device)
            activations = read(source, hookpoint, ids.to(source.device), mask)
            for row, n in enumerate(batch):
                positions = torch.from_numpy(sequences[n].positions(index)).to(activations.device)
                out[row_starts[n] : row_starts[n + 1]] = activations[row, positions].to(torch.bfloat16).cpu()
        return out

    def keep_mask(self, rows: Rows, sequences: list[Sequence]) -> Tensor:
        """Mask of the rows to keep: finite, and neither a special token nor an outlier norm in any source [rows].

        Raises SourceError if no row of a source has been finite so far.
        """
        keep = torch.ones(len(next(iter(rows.values()))), dtype=torch.bool)
        corpora = np.repeat([s.corpus for s in sequences], [len(s.anchors) for s in sequences])
        for index, source in enumerate(self.sources):
            norms = torch.linalg.vector_norm(rows[source.name].float(), dim=1)
            finite = torch.isfinite(norms)
            if source.name not in self.medians:
                if not bool(finite.any()):
                    raise SourceError(not_finite(source, f"in all of the first {len(norms):,} rows"))
                self.medians[source.name] = float(norms[finite].median())
            ids = np.concatenate([s.ids[index][s.positions(index)] for s in sequences])
            special = torch.from_numpy(np.isin(ids, source.tokenizer.all_special_ids))
            outlier = finite & (norms > self.recipe.harvest.outlier_norm * self.medians[source.name])
            dropped = {"special": special, "outliers": outlier}
            self._count(index, corpora, dropped if bool(finite.all()) else dropped | {"not_finite": ~finite})
            keep &= ~special & ~outlier & finite
        return keep

    def _count(self, index: int, corpora: Any, dropped: abc.Mapping[str, Tensor]) -> None:
        """Add dropped rows to the counts; `corpora` are the corpus parts of all rows."""
        for corpus in dict.fromkeys(corpora.tolist()):
            for measure, mask in dropped.items():
                self.counts[f"{corpus}/{index}/{measure}"] += int(mask.numpy()[corpora == corpus].sum())

    def lines(self) -> Iterator[str]:
        """What of the texts some source did not read as asked for."""
        for name, tally in self.templates.items():
            if tally.plain:
                yield tally.line(name)
        for index, source in enumerate(self.sources):
            count = sum(n for key, n in self.counts.items() if key.endswith(f"/{index}/not_finite"))
            if count:
                yield not_finite(source, f"for {count:,} tokens, which are left out")


def batches_by_length(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Batches of indices, sorted by length, longest first; a padded batch has at most `tokens` tokens."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _tokenizer_of(source: Source) -> SourceTokenizer:
    return SourceTokenizer(source.tokenizer, source.has_chat_template, source.vocabulary)


def padded(ids: list[np.ndarray[Any, Any]], pad: int) -> Tensor:
    """Token ids of a batch, filled up with `pad`, int64 [sequences, positions]."""
    out = np.full((len(ids), max(map(len, ids))), pad, dtype=np.int64)
    for row, sequence_ids in enumerate(ids):
        out[row, : len(sequence_ids)] = sequence_ids
    return torch.from_numpy(out)


def mask_of(lengths: abc.Sequence[int], device: torch.device) -> Tensor:
    """Attention mask of a padded batch, int64 [sequences, positions]."""
    length = torch.tensor(lengths, device=device)
    return (torch.arange(int(length.max()), device=device) < length[:, None]).long()
