"""Files of every kind are read as what they are, or refused by name; never taken for plain text."""

import gzip
import io
import pickle
import random
import sqlite3
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from trainer.corpus.conversations import Content
from trainer.corpus.origins import read_documents
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusPart

TEXTS = ["one: ä, ö", 'two; "quoted"\nsecond line', "three\tтри"]
JSON_LINES = '{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'


def texts_of(path: Path, notices: list[str] | None = None, **keys: Any) -> list[Content]:
    part = CorpusPart.model_validate({"path": str(path), **keys})
    tally = PartTally("part", ([] if notices is None else notices).append)
    return [record.content for record in read_documents(part, tally, random.Random(0))]


def table() -> pyarrow.Table:
    return pyarrow.table({"id": [1, 2, 3], "text": TEXTS})


@pytest.mark.parametrize(
    ("name", "codec"), [("a.jsonl.zst", "zstd"), ("a.json.zst", "zstd"), ("a.csv.zst", "zstd"), ("a.zst", "zstd")]
)
def test_zstandard_is_decompressed_also_of_several_frames(tmp_path, name, codec):
    whole = "text\n" + "a line\n" * 40_000 if "csv" in name else '{"text": "a line"}\n' * 40_000
    half = len(whole) // 2
    data = b"".join(pyarrow.compress(part.encode(), codec, asbytes=True) for part in (whole[:half], whole[half:]))
    (tmp_path / name).write_bytes(data)

    assert texts_of(tmp_path / name) == ["a line"] * 40_000


def test_a_truncated_zstandard_file_yields_its_complete_records(tmp_path):
    lines = [f'{{"text": "{random.Random(n).randbytes(200).hex()}"}}' for n in range(2_000)]
    data = pyarrow.compress("\n".join(lines).encode(), "zstd", asbytes=True)
    (tmp_path / "half.jsonl.zst").write_bytes(data[: len(data) // 2])
    notices: list[str] = []

    assert 100 < len(texts_of(tmp_path / "half.jsonl.zst", notices)) < 2_000
    assert notices[0].startswith("half.jsonl.zst is truncated after")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_of_a_csv_file_is_read_with_its_quotes_and_line_breaks(tmp_path, delimiter):
    lines = [f"id{delimiter}text{delimiter}label"]
    for number, text in enumerate(TEXTS):
        quoted = '"' + text.replace('"', '""') + '"'
        lines.append(f"{number}{delimiter}{quoted}{delimiter}x")
    name = "a.tsv" if delimiter == "\t" else "a.csv"
    (tmp_path / name).write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")

    assert texts_of(tmp_path / name) == TEXTS


def test_a_csv_file_without_the_column_is_named_with_its_columns(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,hello\n")

    with pytest.raises(CorpusError, match=r"a\.csv has no column 'text'; it has 'id', 'body'\. Set `column:"):
        texts_of(tmp_path)
    assert texts_of(tmp_path, column="body") == ["hello"]


@pytest.mark.parametrize("text", ["text,text\na,b\n", "\n\n", 'text\n"' + "x" * 70_000_000])
def test_csv_that_is_half_right_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)

    with pytest.raises(CorpusError, match=r"a\.csv"):
        texts_of(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.arrow", "a", "cache-1.arrow"])
@pytest.mark.parametrize("opener", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_and_streams_are_read(tmp_path, name, opener):
    with opener(str(tmp_path / name), table().schema) as writer:
        writer.write_table(table())

    assert texts_of(tmp_path / name) == TEXTS


def test_a_data_set_saved_to_disk_is_read_without_the_files_that_describe_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": TEXTS})
    saved.save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "plain" / "README.md").write_text("About this data set. " * 50)
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(str(tmp_path / "splits"))
    notices: list[str] = []

    assert texts_of(tmp_path / "plain", notices) == TEXTS
    assert "README.md" in notices[0] and "left out" in notices[0]
    assert texts_of(tmp_path / "splits") == TEXTS
    assert texts_of(tmp_path / "splits", split="test") == TEXTS[:1]
    with pytest.raises(CorpusError, match=r"has no split 'validation'; it has test, train"):
        texts_of(tmp_path / "splits", split="validation")


def test_a_folder_of_texts_keeps_its_readme(tmp_path):
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / ".hidden.md").write_text("not me")

    assert texts_of(tmp_path) == ["read me"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, encoding, name):
    (tmp_path / name).write_bytes((JSON_LINES if name != "a.txt" else "plain текст").encode(encoding))

    assert texts_of(tmp_path / name) == (["one", "two", "three"] if name != "a.txt" else ["plain текст"])


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text " * 100)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.sqlite") as connection:
        connection.execute("create table texts (text)")
    connection.close()
    return (folder / "a.sqlite").read_bytes()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(100))
    return file.getvalue()


BINARY = {
    "random bytes": random.Random(0).randbytes(5_000),
    "few random bytes": random.Random(0).randbytes(100),
    "zip": zipped(),
    "tar": tarred(),
    "pickle": pickle.dumps(["a long text " * 200] * 10),
    "old pickle": pickle.dumps([b"x" * 2000] * 10, protocol=2),
    "numpy": array(),
    "gzip": gzip.compress(b"text " * 1000),
    "zstd": pyarrow.compress(b"text " * 1000, "zstd", asbytes=True),
    "floats": np.linspace(0, 1, 500).tobytes(),
    "pdf": b"%PDF-1.7\n" + b"text " * 100,
    "utf-16 without mark": ("text " * 100).encode("utf-16-le"),
    "latin-1": ("Größe über Länge, für Äpfel. " * 100).encode("latin-1"),
    "cyrillic": ("Война и мир. " * 100).encode("cp1251"),
    "shift-jis": ("日本語の文章。" * 100).encode("shift-jis"),
}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.bin", "a.jsonl", "a.json", "a.csv", "a.txt.gz"])
@pytest.mark.parametrize("content", BINARY)
def test_binary_files_and_other_encodings_are_refused_by_name_whatever_they_are_called(tmp_path, name, content):
    data = BINARY[content]
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    with pytest.raises(CorpusError, match=rf"{tmp_path / name}"):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("name", ["page.html", "page"])
def test_a_web_page_is_refused(tmp_path, name):
    (tmp_path / name).write_text("\n<!DOCTYPE html>\n<html><p>text</p></html>")

    with pytest.raises(CorpusError, match=r"page.* is a web page"):
        texts_of(tmp_path / name)


def test_a_database_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(database(tmp_path))

    with pytest.raises(CorpusError, match=r"a\.txt is an SQLite database"):
        texts_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.arrow"])
def test_a_table_under_another_suffix_is_refused_with_its_own(tmp_path, name):
    pyarrow.parquet.write_table(table(), tmp_path / name)

    with pytest.raises(CorpusError, match=r"is parquet by its content, .* Rename it to end in \.parquet"):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("data", [b"text", random.Random(1).randbytes(400)])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.parquet.gz", "a.arrow.zst", "a.jsonl.zst", "a.txt.xz"])
def test_a_damaged_file_of_a_known_kind_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)

    with pytest.raises(CorpusError, match=r"a\."):
        texts_of(tmp_path / name)


def test_xml_that_is_no_export_is_refused(tmp_path):
    (tmp_path / "feed.xml").write_text('<?xml version="1.0"?><rss><item>text</item></rss>')

    with pytest.raises(CorpusError, match=r"feed\.xml is XML, but no MediaWiki export"):
        texts_of(tmp_path)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_string_column_with_bytes_that_are_not_utf_8_is_read_with_replacements(tmp_path, kind, name):
    raw = pyarrow.array(
        [b"good", b"caf\xe9 au lait", None, b"end"],
        pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary(),
    )
    column = pyarrow.Array.from_buffers(kind, len(raw), raw.buffers())
    broken = pyarrow.table({"text": column})
    if name == "a.parquet":
        pyarrow.parquet.write_table(broken, tmp_path / name)
    else:
        with pyarrow.ipc.new_stream(str(tmp_path / name), broken.schema) as writer:
            writer.write_table(broken)

    assert texts_of(tmp_path / name) == ["good", "caf\ufffd au lait", "end"]


def test_a_chat_with_bytes_that_are_not_utf_8_is_left_out(tmp_path):
    raw = pyarrow.array([b"hello", b"caf\xe9", b"good"])
    content = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    turns = pyarrow.StructArray.from_arrays([pyarrow.array(["user"] * 3), content], ["role", "content"])
    chats = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2, 3]), turns)
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "a.parquet")

    found = texts_of(tmp_path / "a.parquet", format="chat")

    assert [chat[0].content for chat in found] == ["hello", "good"]


@pytest.mark.parametrize("megabytes", [4, 300])
def test_a_parquet_file_of_repeated_values_does_not_fill_the_memory(tmp_path, megabytes):
    value = pyarrow.array(["a" * megabytes * 1_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 50, pyarrow.int32()), value)
    pyarrow.parquet.write_table(
        pyarrow.table({"text": column}), tmp_path / "a.parquet", compression="zstd", write_statistics=False
    )
    before = pyarrow.total_allocated_bytes()
    part = CorpusPart.model_validate({"path": str(tmp_path / "a.parquet")})
    records = read_documents(part, PartTally("part", [].append), random.Random(0))

    if megabytes == 300:
        with pytest.raises(CorpusError, match=r"a\.parquet: column 'text' decompresses to 0\.3 GB at a time"):
            next(records)
    else:
        assert len(str(next(records).content)) == 4_000_000
        assert pyarrow.total_allocated_bytes() - before < 1 << 29
        records.close()


def test_each_error_names_the_file_in_a_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    (tmp_path / "b.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')

    with pytest.raises(CorpusError, match=r"b\.jsonl"):
        texts_of(tmp_path)


def test_a_link_to_nothing_is_called_that(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")

    with pytest.raises(CorpusError, match=r"a\.jsonl is a link to .*gone\.jsonl, which does not exist"):
        texts_of(tmp_path / "a.jsonl")
