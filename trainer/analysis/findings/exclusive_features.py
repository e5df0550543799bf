"""Findings about features that one source has, and the others lack or have less of."""

from typing import Any

import numpy as np

from trainer.analysis.claims.margin import margins
from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.findings.finding_list import Findings
from trainer.analysis.findings.peak_tokens import peaks_in_words
from trainer.analysis.findings.reported import Reported
from trainer.analysis.findings.trainings import trainings

NO_PAIR: dict[str, Any] = {
    "property": None,
    "subject": None,
    "base": None,
    "source": None,
    "names": [],
    "base_expects": [],
    "source_expects": [],
    "surprise_gain": None,
}


def add_exclusive_features(found: Findings, reported: Reported) -> None:
    """Add every supported claim that one source has a feature."""
    judged, owner = reported.judged, reported.owner
    stats, margin = judged.stats, margins(judged.stats, reported.recipe)
    for feature in np.flatnonzero([verdict == SUPPORTED for verdict in judged.judgement.verdict]).tolist():
        row = {
            "kind": "feature",
            "title": peaks_in_words(feature, reported),
            "owner": owner[feature],
            "feature": feature,
            "measure": "probe_ratio",
            "effect": float(stats.ratio.value[feature]),
            "low": float(stats.ratio.low[feature]),
            "high": float(stats.ratio.high[feature]),
            "fdr": None if np.isnan(stats.fdr[feature]) else float(stats.fdr[feature]),
            **trainings(feature, reported),
            "documents": int(np.nan_to_num(stats.documents[feature])),
            **NO_PAIR,
        }
        found.add(float(np.nan_to_num(margin[feature])), row, [{"feature": feature, "share": 1.0}], [])
