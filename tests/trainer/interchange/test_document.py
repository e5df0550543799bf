"""docs/formats.md agrees with the code."""

import json
import re
from dataclasses import fields
from pathlib import Path

from safetensors.torch import load_file

from tests.worlds.foreign_checkpoints import OWN_FIRST, random_crosscoder
from trainer.interchange.formats import FORMATS, READABLE
from trainer.store.store import ActivationStore, Manifest, Shard, StoredSource

TEXT = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_program_that_writes_a_store_writes_one_that_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert program

    exec(program[1], {})
    store = ActivationStore.open(tmp_path / "store")

    store.verify()
    assert (store.count("train"), store.count("held_out"), store.widths) == (2000, 1000, {"base": 64, "tuned": 48})


def test_every_key_of_a_manifest_is_described():
    part = TEXT.partition("### manifest.json")[2].partition("### Shards")[0]

    keys = {field.name for cls in (Manifest, Shard, StoredSource) for field in fields(cls)}
    assert {key for key in keys if f"`{key}`" not in part} == set()


def test_every_tensor_and_key_of_a_crosscoder_is_described(tmp_path):
    part = TEXT.partition("## Crosscoder")[2].partition("## Other tools")[0]
    random_crosscoder(OWN_FIRST).save(tmp_path)
    description = json.loads((tmp_path / "crosscoder.json").read_text())
    kinds = {name.partition(".")[0] for name in load_file(tmp_path / "crosscoder.safetensors")}

    keys = {*description, *description["sources"][0], *description["groups"][0], *description["sparsity"]}
    assert {key for key in keys if f"`{key}`" not in part} == set()
    assert {kind for kind in kinds if f"`{kind}.<" not in part} == set()


def test_every_format_is_in_the_table_with_what_can_be_done():
    rows = {row[0].strip(" `"): row for line in TEXT.splitlines() if len(row := line.strip("|").split("|")) == 4}

    assert {name: rows[name][2].strip() == "yes" for name in FORMATS} == {name: name in READABLE for name in FORMATS}
    assert all(rows[name][3].strip() == "yes" for name in FORMATS)
