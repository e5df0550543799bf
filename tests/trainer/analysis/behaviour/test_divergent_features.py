"""Which features are told because models differ where they fire, on spans made by hand."""

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Units, divergence_ratios
from trainer.analysis.behaviour.divergent_features import DivergentFeature, divergent_features
from trainer.analysis.behaviour.feature_divergence import FeatureDivergence
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.themes import Theme
from trainer.analysis.behaviour.windows import WINDOW, Candidate, TextWindows

GROUPS, PER_GROUP = 30, 2 * WINDOW
GROUP = np.repeat(np.arange(GROUPS), PER_GROUP)
AT = np.tile(np.arange(PER_GROUP), GROUPS)
"""Number of a span in its group: a sequence of two windows each."""
EVERYWHERE = np.ones(len(GROUP), bool)


def compared(apart: np.ndarray, control: np.ndarray | float = 1.0) -> tuple[SpanTable, TextWindows]:
    """Spans on which the models are so many times as far apart as a noised copy is."""
    reference = np.random.default_rng(0).gamma(4, 0.25, len(GROUP))
    spans = SpanTable(
        0,
        1,
        sequence=GROUP,
        byte_start=AT,
        byte_end=AT + 1,
        apart=apart * reference,
        reference=reference,
        control=reference * control,
        surprise=np.zeros((2, len(GROUP))),
        expected=np.full((2, len(GROUP)), "", object),
    )
    first = np.arange(0, len(GROUP), WINDOW)
    sums = (np.add.reduceat(one, first) for one in (spans.apart, spans.reference, spans.control))
    one, two, three = sums
    windows = TextWindows(
        Units(one, two, GROUP[first], three), first, first + WINDOW, [], sp.csr_matrix((0, len(first)))
    )
    return spans, windows


def measured(spans: SpanTable, fires: list[np.ndarray]) -> FeatureDivergence:
    """Ratios of features that fire before some spans."""
    members = sp.csr_matrix(np.array(fires).reshape(len(fires), len(GROUP)))
    units = Units(spans.apart, spans.reference, GROUP, spans.control)
    ratios = divergence_ratios(members, units, prior=WINDOW)
    above = np.flatnonzero(ratios.low >= 1).tolist()
    return FeatureDivergence(0, 1, ratios, np.zeros(len(fires)), {one: np.flatnonzero(fires[one]) for one in above})


def found(
    apart: np.ndarray,
    fires: list[np.ndarray],
    themes: tuple[Theme, ...] = (),
    *,
    control: np.ndarray | float = 1.0,
    recurs: list[bool] | None = None,
) -> list[DivergentFeature]:
    spans, windows = compared(apart, control)
    known = np.ones(len(fires), bool) if recurs is None else np.array(recurs)
    return divergent_features(measured(spans, fires), (spans, windows), themes, 1.5, recurs=known)


def told(apart: np.ndarray, fires: list[np.ndarray], themes: tuple[Theme, ...] = (), **more) -> list[int]:
    return [one.feature for one in found(apart, fires, themes, **more)]


def factor(where: np.ndarray, value: float) -> np.ndarray:
    return np.where(where, value, 1.0)


def test_a_feature_and_its_shades_are_told_once_and_another_beside_it():
    strong, other = np.isin(AT, [3, 9]), np.isin(AT, [5, 15])
    shade = strong & (GROUP < 25)
    apart = factor(strong, 9) * factor(other, 4)

    first, second = found(apart, [other, shade, strong, AT == 7])

    assert (first.feature, second.feature) == (2, 0)
    assert first.low > second.low > 1.5
    assert first.groups == GROUPS
    assert (second.among == ~strong).all() and first.among.all(), "what was told is left out"
    assert (first.spans == np.flatnonzero(strong)).all()


def test_what_a_theme_tells_is_not_told_again():
    often = np.isin(AT, [3, 9, 15, 21])
    inside, outside = often & (GROUP < 5), often & (GROUP >= 15)
    apart = factor(inside, 20) * factor(outside, 9)
    theme_windows = np.flatnonzero(np.repeat(np.arange(GROUPS), 2) < 5)
    theme = Theme(Candidate("word", "x"), [], theme_windows, 5, 4, 6, 10, np.ones(2 * GROUPS, bool))

    assert told(apart, [inside, outside]) == [0, 1]
    assert told(apart, [inside, outside], (theme,)) == [1]


def test_a_ratio_must_hold_against_either_copy_beside_what_is_told_and_in_four_groups():
    fires = np.isin(AT, [3, 9])
    apart = factor(fires, 6)

    assert told(apart, [fires]) == [0]
    assert told(apart, [fires], control=factor(fires, 6)) == [], "the other copy moves there as much"
    assert told(factor(fires, 1.4), [fires]) == []
    mostly = fires & (GROUP < 28)
    rest = mostly ^ fires | (fires & (GROUP == 27))  # three groups, of which one is told
    assert told(apart, [mostly, rest]) == [0]


def test_a_feature_that_no_other_training_has_found_is_not_told():
    strong, other = np.isin(AT, [3, 9]), np.isin(AT, [5, 15])
    apart = factor(strong, 9) * factor(other, 4)

    assert told(apart, [strong, other], recurs=[False, True]) == [1]
    assert told(apart, [strong, other], recurs=[False, False]) == []
