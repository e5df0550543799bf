"""Which kinds of text become themes, on windows made by hand."""

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Units
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.behaviour.themes import expected_tokens, find_themes, null_themes
from trainer.analysis.behaviour.windows import Candidate, TextWindows

GROUPS, PER_GROUP = 40, 5
PIRATE, MATEY, RIVER, PLAIN = (Candidate("word", name) for name in ("pirate", "matey", "river", "plain"))


def windows_of(apart: np.ndarray, inside: dict[Candidate, list[int]]) -> TextWindows:
    """Windows of which some groups of documents have a candidate in all of theirs."""
    group = np.repeat(np.arange(GROUPS), PER_GROUP)
    rng = np.random.default_rng(0)
    reference = rng.gamma(4, 0.25, len(group))
    members = np.array([np.isin(group, groups) for groups in inside.values()]).reshape(len(inside), len(group))
    at = np.arange(len(group))
    units = Units(apart * reference, reference, group)
    return TextWindows(units, at, at + 1, list(inside), sp.csr_matrix(members))


def with_control(windows: TextWindows, factor: np.ndarray | float) -> TextWindows:
    """The windows with a second noised copy, so many times as far apart from the base as the first."""
    return replace(windows, units=windows.units._replace(control=windows.units.reference * factor))


def where(groups: list[int], factor: float) -> np.ndarray:
    """Divergence over the reference: one everywhere but in some groups, where it is `factor`."""
    return np.where(np.isin(np.repeat(np.arange(GROUPS), PER_GROUP), groups), factor, 1.0)


def test_the_strongest_kind_of_text_is_first_and_its_other_words_are_told_with_it():
    rare, other, plain = list(range(6)), list(range(10, 16)), list(range(20, 40))
    apart = where(rare, 8) * where(other, 3)
    windows = windows_of(apart, {RIVER: other, MATEY: rare[:5], PIRATE: rare, PLAIN: plain})

    first, second = find_themes(windows, 1.5)

    assert {first.name, *first.others} == {PIRATE, MATEY}
    assert second.name == RIVER and second.others == []
    assert first.low > 4 and 2 < second.low <= second.ratio < 4
    assert (first.groups, second.groups) == (6, 6)


def test_a_kind_of_which_three_groups_are_left_is_no_theme():
    first, second = list(range(10)), list(range(6, 13))  # three of the second's seven groups are not of the first
    apart = where(first, 8) * where([10, 11, 12], 6)

    found = find_themes(windows_of(apart, {PIRATE: first, RIVER: second}), 1.5)

    assert [theme.name for theme in found] == [PIRATE]


def test_a_kind_must_be_above_the_limit_in_either_half_of_its_documents():
    rare, steady = list(range(6)), list(range(10, 16))
    apart = where(rare, 1.2) * where([0], 40) * where([2], 30) * where([4], 35)  # the even ones of its groups

    assert find_themes(windows_of(apart, {PIRATE: rare}), 1.5) == []
    found = find_themes(windows_of(apart * where(steady, 60), {PIRATE: rare, RIVER: steady}), 1.5)
    assert [theme.name for theme in found] == [RIVER], "the next one is told"


def test_models_that_predict_alike_and_kinds_below_the_limit_give_no_theme():
    rare = list(range(6))

    assert find_themes(windows_of(where(rare, 1.3), {PIRATE: rare}), 1.5) == []
    assert find_themes(windows_of(where(rare, 8) * 1e-9, {PIRATE: rare}), 1.5) == [], "rounding is no behaviour"
    assert find_themes(windows_of(where(rare, 8), {}), 1.5) == []


def test_the_null_looks_for_themes_in_the_divergence_of_another_noised_copy():
    rare = list(range(6))
    windows = windows_of(where(rare, 8), {PIRATE: rare})

    assert null_themes(with_control(windows, 1.1), 1.5) == []
    (found,) = null_themes(with_control(windows, where(rare, 4)), 1.5)
    assert found.name == PIRATE
    (found,) = null_themes(with_control(windows, where(rare, 0.25)), 1.5)
    assert found.name == PIRATE, "of either copy"


def test_a_theme_must_hold_against_either_noised_copy():
    rare = list(range(6))
    windows = windows_of(where(rare, 8), {PIRATE: rare})

    assert find_themes(with_control(windows, where(rare, 8)), 1.5) == [], "the other copy moves there as much"
    (strong,) = find_themes(with_control(windows, 1.0), 1.5)
    (weaker,) = find_themes(with_control(windows, where(rare, 2)), 1.5)
    assert strong.low > weaker.low > 1.5


def test_tokens_that_a_model_expects_there_more_than_elsewhere_are_told():
    spans = SpanTable(
        0,
        1,
        sequence=np.arange(6),
        byte_start=np.zeros(6, int),
        byte_end=np.ones(6, int),
        apart=np.array([0.5, 0.5, 0.4, 0.1, 0.1, 0.1]),
        reference=np.ones(6),
        control=np.ones(6),
        surprise=np.zeros((2, 6)),
        expected=np.array(
            [["The", "The", "same", "The", "a", "The"], ["Ahoy", "Ahoy", "same", "It", "a", "Ah"]], object
        ),
    )
    base, source = expected_tokens(spans, np.arange(6) < 3, np.ones(6, bool))

    assert base == [], "it expects the same elsewhere"
    assert source == ["Ahoy"]
