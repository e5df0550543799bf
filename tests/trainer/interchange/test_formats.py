"""The format of a checkpoint is detected from its folder, and an export overwrites nothing."""

import json

import pytest
import torch

from tests.worlds.foreign_checkpoints import SHARED_FIRST, UNEVEN, assert_identical, random_crosscoder
from trainer.errors import CrosscoderError
from trainer.interchange.formats import FORMATS, READABLE, detect, read, write


@pytest.mark.parametrize("name", READABLE)
def test_what_was_written_is_detected_and_read(tmp_path, name):
    crosscoder = random_crosscoder(rank_by="activation" if name == "antebe" else "sum_of_norms")

    write(crosscoder, tmp_path / "out", name)

    assert detect(tmp_path / "out").name == name
    assert_identical(read(tmp_path / "out"), crosscoder)


@pytest.mark.parametrize("name", READABLE)
def test_the_weights_file_alone_is_detected(tmp_path, name):
    write(random_crosscoder(rank_by="activation"), tmp_path / "out", name)

    weights = next(path for path in (tmp_path / "out").iterdir() if path.suffix in (".pt", ".safetensors"))

    assert detect(weights).name == name
    assert read(weights).features == 9


@pytest.mark.parametrize("name", FORMATS)
def test_a_crossdiff_dfc_is_written_in_every_format_with_exclusive_features(tmp_path, name):
    crosscoder = random_crosscoder(SHARED_FIRST, normalisation=UNEVEN, threshold=1.0, rank_by="largest_norm")
    options = {"k": 3} if name in ("antebe", "sparsify") else {}

    if name in ("ckkissane", "crosscode"):
        with pytest.raises(CrosscoderError, match="no exclusive features"):
            write(crosscoder, tmp_path / "out", name, **options)
    else:
        write(crosscoder, tmp_path / "out", name, **options)
        assert any((tmp_path / "out").rglob("*.json"))


def test_a_folder_that_holds_something_is_not_written_into(tmp_path):
    (tmp_path / "model.pt").write_text("mine")

    with pytest.raises(CrosscoderError, match="not empty"):
        write(random_crosscoder(), tmp_path, "crosscode")
    assert (tmp_path / "model.pt").read_text() == "mine"


def test_a_folder_with_nothing_known_is_described(tmp_path):
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(
        CrosscoderError, match=r"recognises, but notes.txt. Name the format: crossdiff, dictionary-lear"
    ):
        read(tmp_path)
    with pytest.raises(CrosscoderError, match=r"holds no antebe checkpoint, but notes.txt"):
        read(tmp_path, "antebe")


def test_two_formats_in_one_folder_are_both_named(tmp_path):
    write(random_crosscoder(), tmp_path / "out", "ckkissane")
    torch.save({}, tmp_path / "out" / "model_final.pt")

    with pytest.raises(CrosscoderError, match=r"may be dictionary-learning or ckkissane. Name the format"):
        read(tmp_path / "out")
    assert read(tmp_path / "out", "ckkissane").features == 9


@pytest.mark.parametrize("name", ["saelens", "sparsify"])
def test_autoencoders_of_one_source_are_no_crosscoder(tmp_path, name):
    write(random_crosscoder(), tmp_path / "out", name)

    with pytest.raises(CrosscoderError, match=f"autoencoders of {name}"):
        read(tmp_path / "out")
    with pytest.raises(CrosscoderError, match=f"{name} can be written, not read"):
        read(tmp_path / "out", name)


def test_a_wrong_format_option_or_path_is_named(tmp_path):
    write(random_crosscoder(), tmp_path / "out", "ckkissane")

    with pytest.raises(CrosscoderError, match=r"No format is named 'sae'. Known are crossdiff"):
        read(tmp_path / "out", "sae")
    with pytest.raises(CrosscoderError, match=r"ckkissane has no option 'threshold' here. It has sources, scales"):
        read(tmp_path / "out", threshold=1.0)
    with pytest.raises(CrosscoderError, match="does not exist"):
        read(tmp_path / "gone")


@pytest.mark.parametrize("names", [("one",), ("one", "one"), ("Gross", "klein"), ("shared", "other"), ("../a", "b")])
def test_names_of_sources_are_checked(tmp_path, names):
    write(random_crosscoder(), tmp_path / "out", "ckkissane")

    with pytest.raises(CrosscoderError, match="source"):
        read(tmp_path / "out", sources=names)


def test_names_that_stand_in_a_hostile_file_are_checked_too(tmp_path):
    write(random_crosscoder(), tmp_path / "out", "ckkissane")
    settings = json.loads((tmp_path / "out" / "cfg.json").read_text())
    settings["crossdiff"]["sources"] = ["<script>", 3]
    (tmp_path / "out" / "cfg.json").write_text(json.dumps(settings))

    with pytest.raises(CrosscoderError, match="'<script>' cannot name a source"):
        read(tmp_path / "out")
