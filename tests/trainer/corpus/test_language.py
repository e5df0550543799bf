"""Language detection and duplicate detection."""

import random

import pytest

from trainer.corpus.duplicates import TextIndex
from trainer.corpus.language import chat_excerpt, detect_language, matches_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The committee will meet again next week to discuss the results of the survey.", "en"),
        ("Der Ausschuss trifft sich nächste Woche wieder, um die Ergebnisse zu besprechen.", "de"),
        ("El comité se reunirá la próxima semana para discutir los resultados.", "es"),
        ("委员会将于下周再次开会讨论调查结果。", "zh"),
        ("위원회는 다음 주에 다시 모여 조사 결과를 논의할 것입니다.", "ko"),
        ("ستجتمع اللجنة مرة أخرى الأسبوع المقبل لمناقشة النتائج.", "ar"),
        ("", "und"),
        ("1.5 2.5\n\n--- 3.5", "und"),
        ("```\nfor (int i = 0; i < n; ++i) sum += values[i];\n```", "und"),
    ],
)
def test_the_language_of_a_text_is_detected(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_more_than_the_first_80_characters_are_inspected() -> None:
    # By default the library reads only 80 characters.
    assert detect_language("x = 1; y = 2; z = 3 // todo\n" * 3 + "Und dann gingen wir nach Hause. " * 20) == "de"


def test_the_language_of_a_chat_is_detected_from_several_turns() -> None:
    answers = ["Bitte schreibe einen Aufsatz.", *["The importance of education cannot be overstated. " * 30] * 3]

    assert detect_language(chat_excerpt(answers)) == "en"


def test_an_undetermined_language_is_neither_english_nor_other() -> None:
    assert [matches_language(wanted, "und") for wanted in ("any", "english", "other")] == [True, False, False]
    assert [matches_language(wanted, "en") for wanted in ("any", "english", "other")] == [True, True, False]
    assert [matches_language(wanted, "fi") for wanted in ("any", "english", "other")] == [True, False, True]


def is_duplicate(index: TextIndex, text: str) -> bool:
    compared = index.compare(text)
    index.add(compared, 0)
    return compared.duplicate


def test_duplicates_are_found_regardless_of_case_spacing_and_punctuation() -> None:
    index = TextIndex()

    assert [
        is_duplicate(index, text) for text in ("Hello, world!", "hello world", "Hello worlds", "!!", "!!", "??")
    ] == [
        *(False, True, False, False, True, False),
    ]


def test_a_text_with_one_word_changed_is_a_near_duplicate_and_one_with_half_changed_is_not() -> None:
    rng = random.Random(0)
    words = [f"word{rng.randrange(1_000)}" for _ in range(400)]
    changed = [*words[:200], "other", *words[201:]]
    half = [*words[:200], *(f"new{number}" for number in range(200))]
    index = TextIndex()

    assert not is_duplicate(index, " ".join(words))
    assert is_duplicate(index, " ".join(changed))
    assert not is_duplicate(index, " ".join(half))


def test_texts_that_share_a_good_part_are_similar_and_give_their_group() -> None:
    rng = random.Random(0)
    words = [f"word{rng.randrange(1_000)}" for _ in range(400)]
    most = [*words[:300], *(f"new{number}" for number in range(100))]  # 296 shared shingles of 496
    half = [*words[:200], *(f"other{number}" for number in range(200))]  # 196 of 596
    index = TextIndex()
    index.add(index.compare(" ".join(words)), 7)

    found = index.compare(" ".join(most))
    assert not found.duplicate and found.group == 7
    assert index.compare(" ".join(half)).group is None
