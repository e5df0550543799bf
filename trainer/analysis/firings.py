"""Firings: how often, how strongly and on what kind of text each feature fires."""

from dataclasses import dataclass

import numpy as np

from trainer.analysis.codes import FeatureCodes, begins
from trainer.analysis.places import Places
from trainer.analysis.texts import Texts


@dataclass(frozen=True)
class Ground:
    """What is known of every row analysed. Axis P: places, or rows when the store has no text."""

    rows: int
    places: Places | None = None
    texts: Texts | None = None
    template: np.ndarray | None = None
    """Whether each place ends in a chat template, bool [P]."""
    opening: np.ndarray | None = None
    """Whether each place is one of the first eight rows of its sequence, bool [P]."""

    @classmethod
    def of(cls, rows: int, places: Places | None, texts: Texts | None) -> "Ground":
        """What can be known from the places and, if there are any, the texts."""
        return cls(
            rows,
            places,
            texts,
            template=texts.in_template(places) if places is not None and texts is not None else None,
            opening=None if places is None else places.opening,
        )


def measure(codes: FeatureCodes, ground: Ground) -> dict[str, np.ndarray]:
    """Measures of a range of features, as columns of the table `feature` [features]; NaN where not known.

    `main_corpus` is an index into the texts' corpora here, -1 where not known. `squares` is the sum of squared
    activations, which the ranking needs.
    """
    firings = codes.counts
    total = np.bincount(codes.feature, weights=codes.value, minlength=codes.features)
    columns = {
        "firings": firings,
        "density": firings / max(ground.rows, 1),
        "max_activation": codes.largest().astype(np.float64),
        "mean_activation": _per(total, firings),
        "template_share": _share(codes, ground.template),
        "first_token_share": _share(codes, ground.opening),
        "squares": np.bincount(codes.feature, weights=codes.value.astype(np.float64) ** 2, minlength=codes.features),
    }
    return columns | _text_measures(codes, ground)


def _text_measures(codes: FeatureCodes, ground: Ground) -> dict[str, np.ndarray]:
    if ground.texts is None or ground.places is None:
        nothing = np.full(codes.features, np.nan)
        return {"documents": nothing, "main_corpus": np.full(codes.features, -1), "main_corpus_share": nothing}
    sequence = ground.places.sequence[codes.row]
    documents = _distinct(codes, ground.texts.origin[sequence])
    parts = len(ground.texts.corpora)
    cell = codes.feature * parts + ground.texts.corpus[sequence]
    table = np.bincount(cell, minlength=codes.features * parts).reshape(codes.features, parts)
    main = table.argmax(axis=1)
    return {
        "documents": documents,
        "main_corpus": np.where(codes.counts > 0, main, -1),
        "main_corpus_share": _per(table.max(axis=1), codes.counts),
    }


def corpus_shares(ground: Ground) -> np.ndarray:
    """Share of all rows in each corpus part [parts]; empty without texts."""
    if ground.texts is None or ground.places is None:
        return np.zeros(0)
    parts = ground.texts.corpus[ground.places.sequence]
    return np.bincount(parts, minlength=len(ground.texts.corpora)) / max(len(parts), 1)


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


def _per(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean
