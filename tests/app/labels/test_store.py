"""Labels: append-only, one current label per author, nothing overwritten silently."""

import threading

import pytest
from sqlalchemy import Engine

from app.database.engine import transaction
from app.errors import ReaderError
from app.labels.store import (
    LabelConflict,
    LabelOfSame,
    LabelTarget,
    count_current,
    count_revisions,
    current_labels,
    features_matching,
    history,
    labels_of_same,
    latest_labels,
    own_label,
    restore_label,
    save_label,
    withdraw_label,
)
from app.labels.wording import WordingRefused, author_name

TARGET = LabelTarget("pair-0123abcd", 7, "f00d")
HOSTILE = (
    """<script>alert(1)</script> "'><img src=x onerror=alert(2)> {{ 7*7 }} \u202egnp.exe; drop table label;-- %_\\"""
)


def save(
    engine: Engine, author: str, text: str, *, based_on: int = 0, note: str = "", target: LabelTarget = TARGET
) -> int:
    """Save in a transaction of its own and give the revision."""
    with transaction(engine, writing=True) as session:
        return save_label(session, target, author, text=text, note=note, based_on=based_on).revision


def test_a_label_is_current_until_its_author_replaces_it(labels: Engine):
    assert save(labels, "Ada", "German") == 1
    assert save(labels, "Ada", "German verbs", based_on=1, note="see context 3") == 2
    with transaction(labels) as session:
        (current,) = current_labels(session, TARGET.run, TARGET.feature)
        assert (current.text, current.note, current.revision) == ("German verbs", "see context 3", 2)
        assert [row.text for row in history(session, TARGET.run, TARGET.feature)] == ["German verbs", "German"]


def test_every_author_has_a_label_of_their_own(labels: Engine):
    save(labels, "Ada", "German")
    save(labels, "Bo", "Dutch")
    with transaction(labels) as session:
        assert [(row.author, row.text) for row in current_labels(session, TARGET.run, TARGET.feature)] == [
            ("Ada", "German"),
            ("Bo", "Dutch"),
        ]
        assert latest_labels(session, TARGET.run, [6, 7, 8]) == {7: "Dutch"}


def test_saving_from_a_second_tab_shows_both_texts_and_overwrites_nothing(labels: Engine):
    save(labels, "Ada", "German")
    save(labels, "Ada", "from tab one", based_on=1)
    with pytest.raises(LabelConflict) as conflict:
        save(labels, "Ada", "from tab two", based_on=1, note="why")
    assert conflict.value.latest is not None
    assert (conflict.value.latest.text, conflict.value.text, conflict.value.note) == (
        "from tab one",
        "from tab two",
        "why",
    )
    assert save(labels, "Ada", "from tab two", based_on=2) == 3
    with transaction(labels) as session:
        assert {row.text for row in history(session, TARGET.run, TARGET.feature)} == {
            "German",
            "from tab one",
            "from tab two",
        }


def test_a_form_that_claims_a_future_revision_is_a_conflict(labels: Engine):
    with pytest.raises(LabelConflict):
        save(labels, "Ada", "German", based_on=4)


def test_saving_the_current_text_again_adds_nothing_even_from_an_old_form(labels: Engine):
    save(labels, "Ada", "German")
    assert save(labels, "Ada", "  German ", based_on=0) == 1
    with transaction(labels) as session:
        assert len(history(session, TARGET.run, TARGET.feature)) == 1


def test_of_ten_concurrent_saves_one_succeeds_and_nine_conflict(labels: Engine):
    outcomes: list[str] = []
    begun = threading.Barrier(10)

    def tab(number: int) -> None:
        begun.wait()
        try:
            save(labels, "Ada", f"tab {number}")
            outcomes.append("saved")
        except LabelConflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=tab, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 9 + ["saved"]


def test_a_withdrawn_label_is_gone_from_pages_and_stays_in_the_history(labels: Engine):
    save(labels, "Ada", "German")
    with transaction(labels, writing=True) as session:
        withdraw_label(session, TARGET, "Ada", based_on=1)
    with transaction(labels) as session:
        assert current_labels(session, TARGET.run, TARGET.feature) == []
        assert features_matching(session, TARGET.run, "german") == set()
        assert latest_labels(session, TARGET.run, [7]) == {}
        assert [row.withdrawn for row in history(session, TARGET.run, TARGET.feature)] == [True, False]
    assert save(labels, "Ada", "German", based_on=2) == 3, "and may be given again"


def test_a_label_that_never_was_cannot_be_withdrawn(labels: Engine):
    with pytest.raises(ReaderError, match="no label of this feature"), transaction(labels, writing=True) as session:
        withdraw_label(session, TARGET, "Ada", based_on=0)
    with transaction(labels) as session:
        assert history(session, TARGET.run, TARGET.feature) == []


def test_restoring_adds_a_revision_that_says_which_it_brings_back(labels: Engine):
    save(labels, "Ada", "German", note="first")
    save(labels, "Ada", "Dutch", based_on=1)
    with transaction(labels, writing=True) as session:
        restored = restore_label(session, TARGET, "Ada", revision=1, based_on=2)
    assert (restored.revision, restored.text, restored.note, restored.restores) == (3, "German", "first", 1)
    with transaction(labels, writing=True) as session, pytest.raises(LabelConflict):
        restore_label(session, TARGET, "Ada", revision=1, based_on=2)


def test_search_ignores_case_in_every_alphabet_and_needs_every_word(labels: Engine):
    save(labels, "Ada", "Straße in KÖLN", target=LabelTarget("run", 1, "a"))
    save(labels, "Ada", "Köln", note="the cathedral", target=LabelTarget("run", 2, "b"))
    save(labels, "Ada", "100% sure", target=LabelTarget("run", 3, "c"))
    save(labels, "Ada", "Köln", target=LabelTarget("another", 4, "d"))
    with transaction(labels) as session:
        assert features_matching(session, "run", "köln") == {1, 2}
        assert features_matching(session, "run", "STRASSE köln") == {1}
        assert features_matching(session, "run", "Cathedral") == {2}
        assert features_matching(session, "run", "0%") == {3}, "a percent sign is no wildcard"
        assert features_matching(session, "run", "_") == set()
        assert features_matching(session, "run", "") == {1, 2, 3}


def test_search_finds_only_current_labels(labels: Engine):
    save(labels, "Ada", "German")
    save(labels, "Ada", "Dutch", based_on=1)
    with transaction(labels) as session:
        assert features_matching(session, TARGET.run, "german") == set()
        assert features_matching(session, TARGET.run, "dutch") == {7}


def test_hostile_text_comes_back_letter_for_letter(labels: Engine):
    save(labels, "<b>Ada</b>", HOSTILE, note=HOSTILE + "\n\nsecond line")
    with transaction(labels) as session:
        mine = own_label(session, TARGET.run, TARGET.feature, "<b>Ada</b>")
        assert mine is not None
        assert (mine.text, mine.note) == (HOSTILE, HOSTILE + "\n\nsecond line")
        assert features_matching(session, TARGET.run, "onerror=alert(2)>") == {7}


@pytest.mark.parametrize(
    ("text", "note", "field", "fact"),
    [
        ("", "a note alone", "text", "empty"),
        (" \n\t ", "", "text", "empty"),
        ("x" * 301, "", "text", "301 characters; the limit is 300"),
        ("fine", "x" * 4001, "note", "4,001 characters"),
        ("nul\x00byte", "", "text", r"U\+0000"),
        ("fine", "half a \ud83d pair", "note", r"U\+D83D"),
    ],
)
def test_text_that_cannot_be_stored_is_refused_with_its_field_and_reason(labels, text, note, field, fact):
    with pytest.raises(WordingRefused, match=fact) as refused:
        save(labels, "Ada", text, note=note)
    assert refused.value.field == field
    with transaction(labels) as session:
        assert history(session, TARGET.run, TARGET.feature) == []


@pytest.mark.parametrize("name", ["", "  ", "Anonymous", "ANON", "x" * 61, "a\x07b"])
def test_an_anonymous_or_invalid_author_name_is_refused(name: str):
    with pytest.raises(WordingRefused):
        author_name(name)


def test_a_name_is_kept_as_its_owner_writes_it():
    assert author_name("  Zoe\u0308   Ångström ") == "Zoë Ångström"


def test_a_history_comes_in_pages_that_join_without_gap_or_repeat(labels: Engine):
    for based_on in range(7):
        save(labels, "Ada", f"text {based_on}", based_on=based_on)
    with transaction(labels) as session:
        pages = [history(session, TARGET.run, TARGET.feature, limit=3, offset=start) for start in (0, 3, 6)]
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [row for page in pages for row in page] == history(session, TARGET.run, TARGET.feature)
        assert count_revisions(session, TARGET.run, TARGET.feature) == 7
        assert count_current(session, TARGET.run, TARGET.feature) == 1


def test_the_newest_labels_of_more_features_than_a_query_can_name(labels: Engine):
    save(labels, "Ada", "German")
    save(labels, "Bo", "Dutch")
    with transaction(labels) as session:
        assert latest_labels(session, TARGET.run, range(300_000)) == {7: "Dutch"}
        assert latest_labels(session, TARGET.run, range(8, 300_000)) == {}


def test_labels_follow_a_feature_to_other_runs_and_places(labels: Engine):
    retrained, moved = LabelTarget("pair-99999999", 3, "f00d"), LabelTarget(TARGET.run, 12, "f00d")
    save(labels, "Ada", "German")
    save(labels, "Ben", "verbs", target=moved)
    save(labels, "Cy", "something else", target=LabelTarget("pair-99999999", 3, "beef"))
    save(labels, "Dee", "withdrawn")
    with transaction(labels, writing=True) as session:
        withdraw_label(session, TARGET, "Dee", based_on=1)

    with transaction(labels) as session:
        assert labels_of_same(session, retrained, limit=9) == [
            LabelOfSame(TARGET.run, 12, "Ben", "verbs"),
            LabelOfSame(TARGET.run, 7, "Ada", "German"),
        ]
        assert [one.author for one in labels_of_same(session, TARGET, limit=9)] == ["Ben"]
        assert len(labels_of_same(session, retrained, limit=1)) == 1
