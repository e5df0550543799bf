"""Measures how often, how strongly and on what kind of text each feature fires."""

from dataclasses import dataclass

import numpy as np

from trainer.analysis.per_feature.languages import languages
from trainer.analysis.rows.codes import FeatureCodes, is_run_start
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts


@dataclass(frozen=True)
class RowMetadata:
    """Metadata of the analysed rows. Axis P: rows in reading order, or in stored order if the store has no text."""

    rows: int
    """Number of rows."""
    row_order: RowOrder | None = None
    texts: Texts | None = None
    template: np.ndarray | None = None
    """Whether each row ends in a chat template, bool [P]."""
    opening: np.ndarray | None = None
    """Whether each row is one of the first eight of its sequence, bool [P]."""
    partitions: tuple["SequencePartition", ...] = ()
    """Partitions of the sequences by corpus part and by language; none without texts."""

    @classmethod
    def from_texts(cls, rows: int, row_order: RowOrder | None, texts: Texts | None) -> "RowMetadata":
        """Metadata that follow from the row order and the texts, as far as the store has them."""
        return cls(
            rows,
            row_order,
            texts,
            template=texts.in_template(row_order) if row_order is not None and texts is not None else None,
            opening=None if row_order is None else row_order.opening,
            partitions=()
            if texts is None
            else (
                SequencePartition("corpus", texts.corpus, texts.corpora),
                SequencePartition("language", *languages(texts)),
            ),
        )

    def text_part_columns(self) -> dict[str, list[str] | np.ndarray]:
        """Columns of the table `text_part`."""
        sequence = np.zeros(0, np.int64) if self.row_order is None else self.row_order.sequence
        with_rows = np.unique(sequence)
        return {
            "kind": [partition.kind for partition in self.partitions for _ in partition.names],
            "name": [name for partition in self.partitions for name in partition.names],
            "rows": _concatenated(
                [np.bincount(partition.part[sequence], minlength=len(partition.names)) for partition in self.partitions]
            ),
            "sequences": _concatenated(
                [
                    np.bincount(partition.part[with_rows], minlength=len(partition.names))
                    for partition in self.partitions
                ]
            ),
        }


@dataclass(frozen=True)
class SequencePartition:
    """A partition of the sequences into parts."""

    kind: str
    """`corpus` or `language`."""
    part: np.ndarray
    """Part of each sequence, index into `names`, [Q]."""
    names: tuple[str, ...]

    def firings(self, codes: FeatureCodes, row_order: RowOrder) -> np.ndarray:
        """Number of firings of each feature of a range in each part, int64 [features, parts]."""
        cell = codes.feature * len(self.names) + self.part[row_order.sequence[codes.row]]
        return np.bincount(cell, minlength=codes.features * len(self.names)).reshape(codes.features, -1)

    def columns(self, first: int, firings: np.ndarray) -> dict[str, list[str] | np.ndarray]:
        """Columns of `feature_corpus` or `feature_language` for a range of features that starts at `first`."""
        feature, part = np.nonzero(firings)
        return {
            "feature": first + feature,
            self.kind: [self.names[index] for index in part],
            "firings": firings[feature, part],
        }


def firing_measures(codes: FeatureCodes, metadata: RowMetadata) -> dict[str, np.ndarray]:
    """Measures of a range of features, as columns of the table `feature` [features]; NaN where unknown.

    `main_corpus` and `main_language` are indices into the names of the metadata's partitions here, -1 where unknown.
    `squares`, the sum of squared activations, is no column; the ranking needs it.
    """
    firings = codes.counts
    total = np.bincount(codes.feature, weights=codes.value, minlength=codes.features)
    columns = {
        "firings": firings,
        "density": firings / max(metadata.rows, 1),
        "max_activation": codes.largest().astype(np.float64),
        "mean_activation": _ratio(total, firings),
        "template_share": _share_of_firings(codes, metadata.template),
        "first_token_share": _share_of_firings(codes, metadata.opening),
        "squares": np.bincount(codes.feature, weights=codes.value.astype(np.float64) ** 2, minlength=codes.features),
    }
    return columns | _text_measures(codes, metadata)


def _text_measures(codes: FeatureCodes, metadata: RowMetadata) -> dict[str, np.ndarray]:
    measures = {"documents": np.full(codes.features, np.nan)}
    if metadata.texts is not None and metadata.row_order is not None:
        measures["documents"] = _distinct(codes, metadata.texts.document[metadata.row_order.sequence[codes.row]])
    for kind in ("corpus", "language"):
        partition = next((one for one in metadata.partitions if one.kind == kind), None)
        if partition is None or metadata.row_order is None:
            main, share = np.full(codes.features, -1), np.full(codes.features, np.nan)
        else:
            table = partition.firings(codes, metadata.row_order)
            main = np.where(codes.counts > 0, table.argmax(axis=1), -1)
            share = _ratio(table.max(axis=1), codes.counts)
        measures |= {f"main_{kind}": main, f"main_{kind}_share": share}
    return measures


def corpus_shares(metadata: RowMetadata) -> np.ndarray:
    """Share of all rows in each corpus part [parts]; empty without texts."""
    if metadata.texts is None or metadata.row_order is None:
        return np.zeros(0)
    parts = metadata.texts.corpus[metadata.row_order.sequence]
    return np.bincount(parts, minlength=len(metadata.texts.corpora)) / max(len(parts), 1)


def share_of_rows(flag: np.ndarray | None) -> float:
    """Share of all rows where a flag is set; NaN without the flag."""
    return float("nan") if flag is None else float(flag.mean())


def _distinct(codes: FeatureCodes, value: np.ndarray) -> np.ndarray:
    """Number of distinct values at each feature's firings, int64 [features]."""
    feature = codes.feature
    # Consecutive firings mostly repeat the value; dropping repeats first makes the sort cheap.
    changed = is_run_start(value) | is_run_start(feature)
    pairs = np.unique((feature[changed].astype(np.int64) << 32) + value[changed])
    return np.bincount(pairs >> 32, minlength=codes.features)


def _share_of_firings(codes: FeatureCodes, flag: np.ndarray | None) -> np.ndarray:
    """Share of each feature's firings where the flag is set; NaN if it never fired or there is no flag."""
    if flag is None:
        return np.full(codes.features, np.nan)
    return _ratio(np.bincount(codes.feature, weights=flag[codes.row], minlength=codes.features), codes.counts)


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return ratio
