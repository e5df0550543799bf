"""The main language of every harvested sequence."""

from tests.worlds.tiny_store import Sequence, text_table
from trainer.analysis.per_feature.languages import languages
from trainer.analysis.rows.texts import read_texts


def sequence(text: str) -> Sequence:
    return Sequence(text, (text,), (text,))


def test_every_sequence_has_the_language_it_is_mostly_in():
    texts = (
        "The cat sat on the mat and looked out of the window for a long time.",
        "Die Katze saß auf der Matte und sah lange Zeit aus dem Fenster.",
        "12 34 56",
        "El gato estaba sentado y miraba por la ventana durante mucho tiempo.",
        "Every morning she would walk down to the harbour and watch the boats.",
    )

    index, codes = languages(read_texts(text_table(tuple(map(sequence, texts))), 2))

    assert [codes[number] for number in index] == ["en", "de", "und", "es", "en"]
    assert sorted(codes) == ["de", "en", "es", "und"]
