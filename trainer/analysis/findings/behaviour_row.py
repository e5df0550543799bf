"""What themes and divergent features are told by alike: columns of the table `finding` about a pair of models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.behaviour.themes import expected_tokens
from trainer.analysis.findings.surprise_gain import surprise_gain


@dataclass(frozen=True)
class Lows:
    """Lower bounds of the ratios of all findings of a kind, and of those that the null gives by the same rule."""

    run: Sequence[float]
    null: Sequence[float]

    def fdr(self, low: float) -> float:
        """Findings of the null at least as strong over those of the run; at most 1."""
        return min(sum(one >= low for one in self.null) / max(sum(one >= low for one in self.run), 1), 1.0)


def behaviour_row(pair: PairBehaviour, inside: np.ndarray, among: np.ndarray, sources: Sequence[str]) -> dict[str, Any]:
    """Columns about spans, bool [N]: those a finding is of (`inside`) of those it was found `among`."""
    spans = pair.spans
    group = pair.windows.units.group[pair.windows.window_of_span()][among]
    gain, low, high = surprise_gain(spans, among, inside[among], group)
    base_expects, source_expects = expected_tokens(spans, inside, among)
    return {
        "owner": sources[spans.source] if low > 0 else sources[spans.base] if high < 0 else None,
        "base": spans.base,
        "source": spans.source,
        "measure": "divergence_ratio",
        "base_expects": base_expects,
        "source_expects": source_expects,
        "surprise_gain": gain,
    }
