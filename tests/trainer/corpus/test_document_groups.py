"""Documents that are not independent share a group, and with it a split."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from trainer.corpus.conversations import Record, id_text, with_conversations
from trainer.corpus.document import Document
from trainer.corpus.document_groups import DocumentGroups, Place
from trainer.corpus.mix import DocumentStream, open_corpus
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusRecipe


def words(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(10_000)}" for _ in range(count)]


def text(seed: int, count: int = 60) -> str:
    return " ".join(words(seed, count))


def chats(path: Path, ids: list[Any], *, key: str = "id", first: int = 0) -> dict[str, Any]:
    """A part of one chat per id, of unrelated words."""
    records = [
        {"conversations": [{"from": "human", "value": text(first + number)}], key: name}
        for number, name in enumerate(ids)
    ]
    path.write_text(json.dumps(records))
    return {"path": str(path), "format": "chat"}


def stream(*mix: dict[str, Any], held_out: float = 0.3, **keys: Any) -> DocumentStream:
    return open_corpus(CorpusRecipe.model_validate({"mix": list(mix), "held_out": held_out, **keys}))


def splits(documents: list[Document]) -> dict[int, set[bool]]:
    found = defaultdict(set)
    for document in documents:
        found[document.group].add(document.held_out)
    return found


def test_a_conversation_that_is_cut_into_records_is_one_group_in_one_split(tmp_path: Path) -> None:
    ids = [f"conv{number:03}_{part}" for number in range(60) for part in (0, 7, 19)]

    found = list(stream(chats(tmp_path / "chats.json", ids)))

    named = {f"User: {text(number)}": name.partition("_")[0] for number, name in enumerate(ids)}
    groups = defaultdict(set)
    for document in found:
        groups[document.group].add(named[document.text])
    assert len(found) == 180 and len(groups) == 60
    assert all(len(names) == 1 for names in groups.values())
    assert all(len(split) == 1 for split in splits(found).values())
    assert 6 <= sum(next(iter(split)) for split in splits(found).values()) <= 30  # 18 of 60, give or take 3.4 s.d.


def test_the_split_of_a_conversation_depends_on_neither_order_nor_mix(tmp_path: Path) -> None:
    part = chats(tmp_path / "chats.json", [f"c{n:03}_{k}" for n in range(40) for k in (0, 1)])
    other = chats(tmp_path / "other.json", [f"d{n:03}_{k}" for n in range(40) for k in (0, 1)], first=1000)

    alone = {document.text: document.held_out for document in stream(part)}
    mixed = {document.text: document.held_out for document in stream(other, part, seed=3)}

    assert any(alone.values()) and all(mixed[each] == held for each, held in alone.items())


def test_parts_that_read_one_file_share_its_conversations_and_files_of_their_own_do_not(tmp_path: Path) -> None:
    part = chats(tmp_path / "chats.json", ["a_0", "b_0", "a_1", "b_1"])
    other = chats(tmp_path / "other.json", ["a_0", "b_0"], first=500)

    twice = list(stream({**part, "name": "one"}, {**part, "name": "two"}, deduplicate=False))
    both = list(stream(part, other))

    assert len(twice) == 8 and len({document.group for document in twice}) == 2
    assert len(both) == 6 and len({document.group for document in both}) == 4


def test_the_field_of_the_conversation_can_be_named_and_must_exist(tmp_path: Path) -> None:
    part = chats(tmp_path / "chats.json", ["x", "y", "x", "y", "x"], key="thread")

    assert len({document.group for document in stream(part)}) == 5
    assert len({document.group for document in stream({**part, "conversation": "thread"})}) == 2
    with pytest.raises(CorpusError, match=r"no column 'treads'; it has .*Set `conversation: thread` of this part"):
        list(stream({**part, "conversation": "treads"}))


def test_texts_take_the_conversation_that_the_recipe_names(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text(number), "book": f"book {number % 3}"}) for number in range(9)]
    (tmp_path / "pages.jsonl").write_text("\n".join(lines))
    part = {"path": str(tmp_path / "pages.jsonl")}

    assert len({document.group for document in stream(part)}) == 9
    assert len({document.group for document in stream({**part, "conversation": "book"})}) == 3


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow"])
def test_tables_give_the_conversation_beside_the_text(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    table = pyarrow.table({"other": [1, 2, 3], "text": [text(1), text(2), text(3)], "book": ["a", "b", "a"]})
    write = {
        "parquet": pyarrow.parquet.write_table,
        "csv": pyarrow.csv.write_csv,
        "arrow": lambda table, path: pyarrow.feather.write_feather(table, path, compression="uncompressed"),
    }[kind]
    write(table, tmp_path / f"pages.{kind}")

    found = list(stream({"path": str(tmp_path / f"pages.{kind}"), "conversation": "book"}))

    assert {document.text for document in found} == {text(1), text(2), text(3)}
    assert len({document.group for document in found}) == 2


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["aB3_0", "aB3_12", "cD4_0", "eF5_3"], ["aB3", "aB3", "cD4", "eF5"]),
        ([f"train_{number}" for number in range(30)], [f"train_{number}" for number in range(30)]),
        (["aB3_0", "thread one", "thread two"], ["aB3_0", "thread one", "thread two"]),
        ([None, "aB3_0", "aB3_1"], [None, "aB3", "aB3"]),
    ],
)
def test_a_number_at_the_end_is_left_off_where_what_precedes_it_differs(ids: list[Any], expected: list[Any]) -> None:
    assert [record.id for record in with_conversations(Record("text", name) for name in ids)] == expected


def test_what_is_no_id_names_no_conversation() -> None:
    assert [id_text(value) for value in (None, True, 1.5, "", [], {})] == [None] * 6
    assert [id_text(value) for value in (0, "a", "lone \ud83d")] == ["0", "a", "lone \ufffd"]


def test_near_duplicates_and_texts_of_one_template_are_one_group_in_one_split() -> None:
    groups = DocumentGroups(held_out=0.5, deduplicate=False)
    base = words(0, 200)
    near = [*base[:100], "changed", *base[101:]]
    template = [*base[:150], *words(1, 50)]  # 146 shared shingles of 246

    first, again, alike, unlike = (
        groups.place(" ".join(each), None, "part") for each in (base, near, template, words(2, 200))
    )

    assert first == again == alike
    assert isinstance(unlike, Place) and unlike.group == 3


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_takes_the_split_of_what_it_copies_whatever_its_own_hash_says(seed: int) -> None:
    groups = DocumentGroups(held_out=0.5, deduplicate=False)
    base = words(seed, 200)
    copies = [" ".join([f"start{number}", *base]) for number in range(20)]

    placed = [groups.place(each, None, "part") for each in copies]

    assert len(set(placed)) == 1


def test_duplicates_are_left_out_where_the_recipe_says_so() -> None:
    groups = DocumentGroups(held_out=0.5, deduplicate=True)

    assert isinstance(groups.place(text(1), None, "part"), Place)
    assert groups.place(text(1).upper(), None, "part") is None


def test_a_document_takes_the_group_of_its_conversation_or_else_of_the_text_it_is_most_like() -> None:
    groups = DocumentGroups(held_out=0.5, deduplicate=False)
    one, other = words(1, 200), words(2, 200)
    groups.place(" ".join(one), None, "part")
    groups.place(" ".join([*one[:160], *words(6, 40)]), "first thread", "part")
    groups.place(text(3), "thread", "part")
    groups.place(" ".join(other), None, "part")

    def group_of(text: str, conversation: str | None = None) -> int:
        place = groups.place(text, conversation, "part")
        assert place is not None
        return place.group

    assert group_of(text(7), "first thread") == 0
    assert group_of(" ".join([*other[:180], *words(4, 20)])) == 3
    assert group_of(" ".join([*one[:180], *words(4, 20)]), "thread") == 2
    assert group_of(" ".join([*other[:180], *words(5, 20)]), "new thread") == group_of(text(5), "new thread") == 3


def test_the_same_recipe_gives_the_same_groups(tmp_path: Path) -> None:
    part = chats(tmp_path / "chats.json", [f"c{n:03}_{k}" for n in range(40) for k in (0, 1)])
    one, again = ([(d.number, d.group, d.held_out) for d in stream(part)] for _ in range(2))
    assert one == again
