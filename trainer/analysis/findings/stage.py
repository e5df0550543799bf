"""Gathers everything that a run reports: exclusive features, kinds of text, and features where predictions differ."""

from trainer.analysis.findings.divergent_features import add_divergent_features
from trainer.analysis.findings.exclusive_features import add_exclusive_features
from trainer.analysis.findings.finding_list import Findings
from trainer.analysis.findings.reported import Reported
from trainer.analysis.findings.themes import add_themes


def findings(reported: Reported) -> Findings:
    """Everything that a run reports."""
    found = Findings()
    add_exclusive_features(found, reported)
    for pair in reported.behaviour:
        add_themes(found, pair, reported)
        add_divergent_features(found, pair, reported)
    return found
