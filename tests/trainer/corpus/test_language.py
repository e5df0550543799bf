"""Languages and duplicates: what a text is in, and whether it was there before."""

import random

import pytest

from trainer.corpus.duplicates import Duplicates
from trainer.corpus.language import detect_language, excerpt, speaks


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
def test_a_text_is_in_the_language_it_is_written_in(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_more_than_the_first_line_counts() -> None:
    # The library by itself reads 80 characters.
    assert detect_language("x = 1; y = 2; z = 3 // todo\n" * 3 + "Und dann gingen wir nach Hause. " * 20) == "de"


def test_a_chat_is_judged_by_several_turns() -> None:
    answers = ["Bitte schreibe einen Aufsatz.", *["The importance of education cannot be overstated. " * 30] * 3]

    assert detect_language(excerpt(answers)) == "en"


def test_a_text_in_no_clear_language_is_neither_english_nor_other() -> None:
    assert [speaks(wanted, "und") for wanted in ("any", "english", "other")] == [True, False, False]
    assert [speaks(wanted, "en") for wanted in ("any", "english", "other")] == [True, True, False]
    assert [speaks(wanted, "fi") for wanted in ("any", "english", "other")] == [True, False, True]


def test_a_text_is_recognised_but_for_case_spacing_and_punctuation() -> None:
    known = Duplicates()

    assert [known.seen(text) for text in ("Hello, world!", "hello world", "Hello worlds", "!!", "!!", "??")] == [
        *(False, True, False, False, True, False),
    ]


def test_a_text_with_a_few_words_changed_is_recognised_and_half_a_text_is_not() -> None:
    chance = random.Random(0)
    words = [f"word{chance.randrange(1_000)}" for _ in range(400)]
    changed = [*words[:200], "other", *words[201:]]
    half = [*words[:200], *(f"new{number}" for number in range(200))]
    known = Duplicates()

    assert not known.seen(" ".join(words))
    assert known.seen(" ".join(changed))
    assert not known.seen(" ".join(half))
