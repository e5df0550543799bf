"""Records of every file format, and of damaged files."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trainer.corpus import records as records_module
from trainer.corpus.conversations import Content
from trainer.corpus.origins import read_documents
from trainer.corpus.records import read_records
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusPart


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def read(notices: list[str]) -> Callable[..., list[Any]]:
    def read_file(path: Path, tally: PartTally | None = None) -> list[Any]:
        return list(read_records(path, tally or PartTally("part", notices.append), lambda names: names[:1]))

    return read_file


def texts_of(path: Path | str, tally: PartTally | None = None, **keys: Any) -> list[Content]:
    part = CorpusPart.model_validate({"path": str(path), **keys})
    records = read_documents(part, tally or PartTally("part", [].append), random.Random(0))
    return [record.content for record in records]


def test_a_text_file_is_cut_at_blank_lines_into_documents_that_give_the_file_when_joined(
    tmp_path: Path, read: Callable[..., list[str]]
) -> None:
    block = "A line of words.\r\n" * 30 + "\r\n"
    text = block * 12
    (tmp_path / "book.txt").write_bytes(text.encode())

    found = read(tmp_path / "book.txt")

    assert "".join(found) == text
    assert {len(document) for document in found} == {len(block) * 4}  # 542 characters each: four pass 2,000


def test_a_line_of_a_megabyte_is_split_into_documents_of_bounded_size(
    tmp_path: Path, read: Callable[..., list[str]]
) -> None:
    (tmp_path / "long.txt").write_text("x" * 1_000_000)

    assert [len(document) for document in read(tmp_path / "long.txt")] == [8_000] * 125


def test_invalid_bytes_are_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9 \xff\xfe nul \x00 end")

    assert texts_of(tmp_path / "bad.txt") == ["café \ufffd\ufffd nul \ufffd end"]


def test_json_lines_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = ['{"text": "one"}', '{"text": "tw', "", '{"text": 3}', '{"text": "two"}', '{"other": "x"}', '{"text": "3"}']
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    tally = PartTally("part", [].append)

    assert texts_of(tmp_path / "some.jsonl", tally) == ["one", "two", "3"]
    assert tally.unreadable == 3


def test_json_lines_are_rejected_if_most_cannot_be_read(tmp_path: Path, read: Callable[..., list[Any]]) -> None:
    (tmp_path / "list.jsonl").write_text('[\n{"text": "a"},\n{"text": "b"}\n]')

    with pytest.raises(CorpusError, match=r"list.jsonl is not JSON lines: 3 of the first 4 lines"):
        read(tmp_path / "list.jsonl")


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_json_list_cut_off_anywhere_gives_its_complete_records(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch, read: Callable[..., list[Any]]
) -> None:
    monkeypatch.setattr(records_module, "CHUNK", chunk)
    values = [{"text": 'a "]" \\ b'}, {"text": "é"}, {"n": [1, {"x": 2}]}]
    whole = json.dumps(values, indent=1)
    ends = [whole.index("},") + 1, whole.index("},", whole.index("},") + 1) + 1, len(whole) - 2]

    for cut in range(ends[0], len(whole) + 1, 3):
        (tmp_path / "cut.json").write_text(whole[:cut])
        assert read(tmp_path / "cut.json") == values[: sum(cut >= end for end in ends)]


def test_a_truncated_list_is_reported_once(tmp_path: Path, read: Callable[..., list[Any]], notices: list[str]) -> None:
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"text": "b"}, {"te')

    assert len(read(tmp_path / "cut.json")) == 2
    assert notices == ["cut.json is truncated after 2 records; those are used."]


def test_a_json_file_may_hold_one_object_or_several_in_a_row(tmp_path: Path, read: Callable[..., list[Any]]) -> None:
    (tmp_path / "one.json").write_text('{"text": "a"}')
    (tmp_path / "row.json").write_text('{"text": "a"}\n{"text": "b"}\n')

    assert read(tmp_path / "one.json") == [{"text": "a"}]
    assert read(tmp_path / "row.json") == [{"text": "a"}, {"text": "b"}]


def test_a_file_that_is_not_json_is_rejected(tmp_path: Path, read: Callable[..., list[Any]]) -> None:
    (tmp_path / "page.json").write_text("<html>Not found</html>")

    with pytest.raises(CorpusError, match="is not JSON"):
        read(tmp_path / "page.json")


def test_halves_of_a_surrogate_pair_are_joined_and_lone_ones_replaced(tmp_path: Path) -> None:
    (tmp_path / "emoji.jsonl").write_text(r'{"text": "\ud83d\ude00 \ud83d! \ude00"}')

    assert texts_of(tmp_path / "emoji.jsonl") == ["😀 \ufffd! \ufffd"]


def test_every_format_is_read_compressed_and_plain(tmp_path: Path) -> None:
    table = pyarrow.table({"other": [1, 2], "text": ["eins", "zwei"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "eins"}\n{"text": "zwei"}\n')
    (tmp_path / "a.json").write_text('["eins", "zwei"]')
    for name in ("a.parquet", "a.jsonl", "a.json"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert texts_of(tmp_path / name) == ["eins", "zwei"]
        assert texts_of(tmp_path / f"{name}.gz") == ["eins", "zwei"]


def test_a_truncated_compressed_file_yields_its_complete_records(
    tmp_path: Path, read: Callable[..., list[Any]], notices: list[str]
) -> None:
    rng = random.Random(0)
    lines = [json.dumps({"text": rng.randbytes(200).hex()}) for _ in range(2_000)]
    compressed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "half.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])

    found = read(tmp_path / "half.jsonl.gz")

    assert 100 < len(found) < 2_000
    assert found == [json.loads(line) for line in lines[: len(found)]]
    assert notices[0].startswith(f"half.jsonl.gz is truncated after {len(found):,} records")


def test_a_file_without_a_suffix_is_recognised_by_its_first_bytes(
    tmp_path: Path, read: Callable[..., list[Any]]
) -> None:
    (tmp_path / "list").write_text(' ["a"]')
    (tmp_path / "prose").write_text("Once upon a time")

    assert read(tmp_path / "list") == ["a"]
    assert read(tmp_path / "prose") == ["Once upon a time"]


def test_an_empty_file_yields_nothing_and_is_reported(
    tmp_path: Path, read: Callable[..., list[Any]], notices: list[str]
) -> None:
    for name in ("a.txt", "a.jsonl", "a.json"):
        (tmp_path / name).write_text("")
        assert read(tmp_path / name) == []
    assert notices == [f"{name} holds no documents." for name in ("a.txt", "a.jsonl", "a.json")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_column_is_reported_with_the_columns_that_exist_and_the_nearest(tmp_path: Path, name: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": ["1"], "texts": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"id": "1", "texts": "a"}')

    with pytest.raises(CorpusError, match=r"no column 'text'; it has 'id', 'texts'. Set `column: texts`"):
        texts_of(tmp_path / name)


def test_a_column_without_text_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n' * 3)

    with pytest.raises(CorpusError, match=r"3 of 3 records hold no text in column 'text'"):
        texts_of(tmp_path / "a.jsonl")


def test_a_missing_path_is_reported_with_the_nearest_that_exists(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("")

    with pytest.raises(CorpusError, match=r"Did you mean .*/chats\.jsonl\?"):
        texts_of(tmp_path / "chat.jsonl")
    with pytest.raises(CorpusError, match=f"{tmp_path} exists, but holds nothing"):
        texts_of(tmp_path / "nowhere" / "deep" / "x.txt")


def test_folders_and_patterns_yield_all_their_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in [("a.txt", "one"), ("deep/b.txt", "two"), ("deep/c.jsonl", '{"text": "three"}'), ("d.png", "4")]:
        (tmp_path / name).write_text(text)

    assert sorted(map(str, texts_of(tmp_path))) == ["one", "three", "two"]
    assert sorted(map(str, texts_of(tmp_path / "*" / "*.txt"))) == ["two"]
    with pytest.raises(CorpusError, match="No file matches"):
        texts_of(tmp_path / "*.csv")


def test_a_hub_dataset_that_cannot_be_opened_raises_one_message(tmp_path: Path) -> None:
    part = CorpusPart(dataset=str(tmp_path / "nothing"))

    with pytest.raises(CorpusError, match=r"Hub dataset .* cannot be opened: .*give a local file as `path:`"):
        list(read_documents(part, PartTally("part", [].append), random.Random(0)))


def test_a_dataset_folder_is_streamed_by_column_and_split(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"body": "one", "n": 1}\n{"body": "two", "n": 2}\n')
    part = CorpusPart(dataset=str(tmp_path), column="body")

    records = read_documents(part, PartTally("part", [].append), random.Random(0))
    assert [record.content for record in records] == ["one", "two"]
    with pytest.raises(CorpusError, match="it has 'body', 'n'"):
        list(read_documents(CorpusPart(dataset=str(tmp_path)), PartTally("part", [].append), random.Random(0)))
