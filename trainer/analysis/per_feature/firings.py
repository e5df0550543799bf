"""Firings: how often, how strongly and on what kind of text each feature fires."""

from dataclasses import dataclass

import numpy as np

from trainer.analysis.per_feature.languages import languages
from trainer.analysis.rows.codes import FeatureCodes, begins
from trainer.analysis.rows.row_order import RowOrder
from trainer.analysis.rows.texts import Texts


@dataclass(frozen=True)
class RowMetadata:
    """What is known of every row analysed. Axis P: places, or rows when the store has no text."""

    rows: int
    places: RowOrder | None = None
    texts: Texts | None = None
    template: np.ndarray | None = None
    """Whether each place ends in a chat template, bool [P]."""
    opening: np.ndarray | None = None
    """Whether each place is one of the first eight rows of its sequence, bool [P]."""
    parts: tuple["Parts", ...] = ()
    """Ways to divide the sequences: by corpus part, and by language; none without texts."""

    @classmethod
    def of(cls, rows: int, places: RowOrder | None, texts: Texts | None) -> "RowMetadata":
        """What can be known from the places and, if there are any, the texts."""
        return cls(
            rows,
            places,
            texts,
            template=texts.in_template(places) if places is not None and texts is not None else None,
            opening=None if places is None else places.opening,
            parts=()
            if texts is None
            else (Parts("corpus", texts.corpus, texts.corpora), Parts("language", *languages(texts))),
        )

    def text_parts(self) -> dict[str, list[str] | np.ndarray]:
        """Columns of the table `text_part`."""
        sequence = np.zeros(0, np.int64) if self.places is None else self.places.sequence
        read = np.unique(sequence)
        return {
            "kind": [part.kind for part in self.parts for _ in part.names],
            "name": [name for part in self.parts for name in part.names],
            "rows": _joined([np.bincount(part.of[sequence], minlength=len(part.names)) for part in self.parts]),
            "sequences": _joined([np.bincount(part.of[read], minlength=len(part.names)) for part in self.parts]),
        }


@dataclass(frozen=True)
class Parts:
    """A way to divide the sequences of the text."""

    kind: str
    """corpus or language."""
    of: np.ndarray
    """Part of each sequence, index into `names` [Q]."""
    names: tuple[str, ...]

    def firings(self, codes: FeatureCodes, places: RowOrder) -> np.ndarray:
        """Firings of each feature of a range in each part, int64 [features, parts]."""
        cell = codes.feature * len(self.names) + self.of[places.sequence[codes.row]]
        return np.bincount(cell, minlength=codes.features * len(self.names)).reshape(codes.features, -1)

    def columns(self, first: int, firings: np.ndarray) -> dict[str, list[str] | np.ndarray]:
        """Columns of the table `feature_corpus` or `feature_language` for a range that begins with feature `first`."""
        feature, part = np.nonzero(firings)
        return {
            "feature": first + feature,
            self.kind: [self.names[index] for index in part],
            "firings": firings[feature, part],
        }


def measure(codes: FeatureCodes, metadata: RowMetadata) -> dict[str, np.ndarray]:
    """Measures of a range of features, as columns of the table `feature` [features]; NaN where not known.

    `main_corpus` and `main_language` are indices into the ground's parts here, -1 where not known. `squares` is the sum
    of squared activations, which the ranking needs.
    """
    firings = codes.counts
    total = np.bincount(codes.feature, weights=codes.value, minlength=codes.features)
    columns = {
        "firings": firings,
        "density": firings / max(metadata.rows, 1),
        "max_activation": codes.largest().astype(np.float64),
        "mean_activation": _per(total, firings),
        "template_share": _share(codes, metadata.template),
        "first_token_share": _share(codes, metadata.opening),
        "squares": np.bincount(codes.feature, weights=codes.value.astype(np.float64) ** 2, minlength=codes.features),
    }
    return columns | _text_measures(codes, metadata)


def _text_measures(codes: FeatureCodes, metadata: RowMetadata) -> dict[str, np.ndarray]:
    measures = {"documents": np.full(codes.features, np.nan)}
    if metadata.texts is not None and metadata.places is not None:
        measures["documents"] = _distinct(codes, metadata.texts.document[metadata.places.sequence[codes.row]])
    for kind in ("corpus", "language"):
        part = next((part for part in metadata.parts if part.kind == kind), None)
        if part is None or metadata.places is None:
            main, share = np.full(codes.features, -1), np.full(codes.features, np.nan)
        else:
            table = part.firings(codes, metadata.places)
            main = np.where(codes.counts > 0, table.argmax(axis=1), -1)
            share = _per(table.max(axis=1), codes.counts)
        measures |= {f"main_{kind}": main, f"main_{kind}_share": share}
    return measures


def corpus_shares(metadata: RowMetadata) -> np.ndarray:
    """Share of all rows in each corpus part [parts]; empty without texts."""
    if metadata.texts is None or metadata.places is None:
        return np.zeros(0)
    parts = metadata.texts.corpus[metadata.places.sequence]
    return np.bincount(parts, minlength=len(metadata.texts.corpora)) / max(len(parts), 1)


def share_of_rows(flag: np.ndarray | None) -> float:
    """Share of all rows where a flag is set; NaN when nothing is known."""
    return float("nan") if flag is None else float(flag.mean())


def _distinct(codes: FeatureCodes, value: np.ndarray) -> np.ndarray:
    """How many different values each feature's firings have [features]."""
    feature = codes.feature
    # Neighbours in reading order mostly repeat; dropping them first makes the sort cheap.
    fresh = begins(value) | begins(feature)
    pairs = np.unique((feature[fresh].astype(np.int64) << 32) + value[fresh])
    return np.bincount(pairs >> 32, minlength=codes.features)


def _share(codes: FeatureCodes, flag: np.ndarray | None) -> np.ndarray:
    """Share of each feature's firings where the flag is set; NaN where nothing fired or nothing is known."""
    if flag is None:
        return np.full(codes.features, np.nan)
    return _per(np.bincount(codes.feature, weights=flag[codes.row], minlength=codes.features), codes.counts)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _per(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean
