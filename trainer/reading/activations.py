"""Pools: documents in, aligned activations of all sources out, some thousand rows at a time."""

import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.corpus.document import Document
from trainer.models.hookpoint import locate, read
from trainer.models.source import Source
from trainer.reading.alignment import possible_anchors
from trainer.reading.sequences import Sequence, Text, cut
from trainer.reading.tokenize import Reader, read_all
from trainer.recipe.recipe import Recipe
from trainer.store.store import Rows

POOL_ROWS = 32_768
"""Anchors collected before the models run."""
DOCUMENTS = 64
"""Documents taken from the corpus at a time."""


class ActivationReader:
    """Reads documents with all sources of a recipe; knows which rows are worth keeping."""

    def __init__(
        self, recipe: Recipe, sources: Many[Source], *, medians: dict[str, float], counts: Counter[str]
    ) -> None:
        """Medians are norms per source, set by the first pool where they are empty; what is left out is counted."""
        assert recipe.corpus is not None, "a harvest needs a corpus"
        self.recipe, self.corpus, self.sources = recipe, recipe.corpus, sources
        self.medians, self.counts = medians, counts
        self.hookpoints = [locate(s, s.recipe.hookpoint, s.recipe.layer) for s in sources]
        self.seconds = dict.fromkeys(("corpus", "alignment", "models", "storing"), 0.0)
        """Where the time went since this object was made."""

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the time of the body under `kind`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - began

    def draw(self, stream: Iterator[Document]) -> list[Text]:
        """Documents with about POOL_ROWS anchors between them; fewer at the end of the corpus, then none."""
        limit = self.corpus.context * self.corpus.sequences_per_document
        texts, anchors = [], 0
        while anchors < POOL_ROWS:
            with self.timed("corpus"):
                some = list(islice(stream, DOCUMENTS))
            if not some:
                break
            with self.timed("alignment"):
                for text in read_all(some, [_reader(source) for source in self.sources], tokens=limit):
                    texts.append(text)
                    anchors += min(possible_anchors([encoded.ends for encoded in text.encoded]), limit)
        return texts

    def sequences(self, texts: list[Text]) -> list[Sequence]:
        """The texts in pieces that fit every source's context."""
        bos, most = [source.bos_id for source in self.sources], self.corpus.sequences_per_document
        return [piece for text in texts for piece in cut(text, context=self.corpus.context, bos=bos, most=most)]

    def activations(self, sequences: list[Sequence]) -> Rows:
        """Activations of every source at the anchors of all sequences, in order [rows, width], bf16."""
        return {source.name: self._read(index, sequences) for index, source in enumerate(self.sources)}

    def _read(self, index: int, sequences: list[Sequence]) -> Tensor:
        source, hookpoint = self.sources[index], self.hookpoints[index]
        begins = np.cumsum([0, *(len(sequence.anchors) for sequence in sequences)])
        out = torch.empty(int(begins[-1]), source.width, dtype=torch.bfloat16)
        for batch in batches_by_length([len(s.ids[index]) for s in sequences], self.recipe.harvest.batch_tokens):
            ids = _padded([sequences[n].ids[index] for n in batch], source.tokenizer.pad_token_id or 0)
            found = read(source, hookpoint, ids.to(source.device), _mask(sequences, batch, index, source.device))
            for row, n in enumerate(batch):
                at = torch.from_numpy(sequences[n].positions(index)).to(found.device)
                out[begins[n] : begins[n + 1]] = found[row, at].to(torch.bfloat16).cpu()
        return out

    def kept(self, rows: Rows, sequences: list[Sequence]) -> Tensor:
        """Which rows stay: finite, no special token in any source, no outlier norm in any source [rows]."""
        keep = torch.ones(len(next(iter(rows.values()))), dtype=torch.bool)
        for index, source in enumerate(self.sources):
            norms = torch.linalg.vector_norm(rows[source.name].float(), dim=1)
            median = self.medians.setdefault(source.name, float(norms.median()))
            ids = np.concatenate([s.ids[index][s.positions(index)] for s in sequences])
            special = torch.from_numpy(np.isin(ids, source.tokenizer.all_special_ids))
            outlier = ~torch.isfinite(norms) | (norms > self.recipe.harvest.outlier_norm * median)
            corpora = np.repeat([s.corpus for s in sequences], [len(s.anchors) for s in sequences])
            for corpus, is_special, is_outlier in zip(corpora, special.tolist(), outlier.tolist(), strict=True):
                self.counts[f"{corpus}/{index}/special"] += is_special
                self.counts[f"{corpus}/{index}/outliers"] += is_outlier
            keep &= ~special & ~outlier
        return keep


def batches_by_length(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, longest first; padding included, a batch has at most `tokens` tokens."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _reader(source: Source) -> Reader:
    return Reader(source.tokenizer, source.bos_id, source.has_chat_template)


def _padded(ids: list[np.ndarray[Any, Any]], pad: int) -> Tensor:
    out = np.full((len(ids), max(map(len, ids))), pad, dtype=np.int64)
    for row, some in enumerate(ids):
        out[row, : len(some)] = some
    return torch.from_numpy(out)


def _mask(sequences: list[Sequence], batch: list[int], index: int, device: torch.device) -> Tensor:
    lengths = torch.tensor([len(sequences[n].ids[index]) for n in batch], device=device)
    return (torch.arange(int(lengths.max()), device=device) < lengths[:, None]).long()
