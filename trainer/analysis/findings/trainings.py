"""In how many trainings a feature was found."""

import numpy as np

from trainer.analysis.findings.reported import Reported


def trainings(feature: int, reported: Reported) -> dict[str, int]:
    """Columns of the table `finding`: trainings that found the feature, and that were looked at, with its own."""
    stats = reported.judged.stats
    others = int(np.nan_to_num(stats.other_runs[feature]))
    again = round(float(np.nan_to_num(stats.found_again[feature] * others)))
    return {"found_in": again + 1, "looked_in": others + 1}
