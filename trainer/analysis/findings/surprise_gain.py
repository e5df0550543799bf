"""How much better than another a model expects some text, beyond what it does elsewhere."""

import numpy as np
from scipy.stats import t

from trainer.analysis.behaviour.divergence_ratio import TAIL
from trainer.analysis.behaviour.span_table import SpanTable


def surprise_gain(
    spans: SpanTable, among: np.ndarray, inside: np.ndarray, group: np.ndarray
) -> tuple[float, float, float]:
    """By how much better the source expects some spans than the base, less the same of the others, nats per byte.

    With its 90 % interval over groups of documents. `among`, bool [N], says which spans are compared at all, `inside`
    and `group` are of those.
    """
    better = (spans.surprise[0] - spans.surprise[1])[among]
    size = (spans.byte_end - spans.byte_start)[among].astype(float)
    parts = [_mean_per_byte(better[kept], size[kept], group[kept]) for kept in (inside, ~inside)]
    gain = parts[0][0] - parts[1][0]
    width = float(t.ppf(1 - TAIL, max(len(np.unique(group[inside])) - 1, 1)) * np.sqrt(parts[0][1] + parts[1][1]))
    return gain, gain - width, gain + width


def _mean_per_byte(better: np.ndarray, size: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """A mean per byte and its variance over groups."""
    if not len(size):
        return 0.0, 0.0
    index = np.unique(group, return_inverse=True)[1]
    mean = better.sum() / size.sum()
    influence = np.bincount(index, better - mean * size) / size.sum()
    count = len(influence)
    return float(mean), float((influence**2).sum() * count / max(count - 1, 1))
