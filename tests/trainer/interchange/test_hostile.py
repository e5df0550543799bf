"""Broken and malicious checkpoints of every format end in a sentence, and never in a traceback or a full memory."""

import json
import math
import resource
import zipfile

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.worlds.foreign_checkpoints import OWN_FIRST, STANDARD, random_crosscoder
from trainer.errors import CrosscoderError, CrossdiffError
from trainer.interchange.formats import detect, read, write
from trainer.interchange.imported import recipe_of
from trainer.interchange.tensor_files import read_settings, read_tensors

FORMATS = {
    "dictionary-learning": ("model_final.pt", "config.json", {}),
    "ckkissane": ("cc_weights.pt", "cfg.json", {}),
    "antebe": ("model.pt", "config.json", {"k": 3}),
    "crosscode": ("model.pt", "model_cfg.yaml", {}),
}
ODD = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    math.nan,
    math.inf,
    "x",
    "\x00",
    [],
    [None],
    [[1]],
    ["a", "a"],
    {},
    {"a": {}},
    "9" * 300,
]
ODD_TENSORS = [
    None,
    3,
    "x",
    {},
    torch.zeros(0),
    torch.zeros(0, 0, 0),
    torch.zeros(0, 4, 9),
    torch.zeros(2, 0, 9),
    torch.zeros(2, 4, 0),
    torch.zeros(2, 4, 9, dtype=torch.complex64),
    torch.zeros(2, 4, 9).to_sparse(),
    torch.zeros(()).expand(2, 4, 9),
    torch.full((2, 4, 9), math.nan),
    torch.zeros(2, 4, 9, device="meta"),
    torch.tensor(math.nan),
    torch.tensor(-(2**62)),
    torch.tensor([1.0, 2.0]),
]


@pytest.fixture(params=FORMATS)
def checkpoint(request, tmp_path):
    """Format, weights file, settings file, and a folder with a whole checkpoint."""
    weights, settings, options = FORMATS[request.param]
    crosscoder = random_crosscoder(STANDARD, threshold=0.0)
    write(crosscoder, tmp_path / "whole", request.param, **options)
    assert detect(tmp_path / "whole").name == request.param
    return request.param, tmp_path / "whole" / weights, tmp_path / "whole" / settings


def outcome(path, name) -> str:
    """What reading ends with: a crosscoder, or a sentence."""
    told = None
    try:
        recipe_of(path, "run", format=name, options={})
    except CrossdiffError as error:
        told = str(error)
    assert told is None or (len(told) < 1_500 and told.endswith((".", "?")))
    return "crosscoder" if told is None else "sentence"


@pytest.mark.filterwarnings("ignore")
def test_odd_settings_end_in_a_sentence_or_have_no_effect(checkpoint):
    name, weights, settings = checkpoint
    load, dump = (json.loads, json.dumps) if settings.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    whole = load(settings.read_text())
    for data in ODD:
        settings.write_text(dump(data))
        outcome(weights.parent, name)
    for holder in [whole, *(value for value in whole.values() if isinstance(value, dict))]:
        for key in list(holder):
            kept = holder[key]
            for value in ODD:
                holder[key] = value
                settings.write_text(dump(whole))
                outcome(weights.parent, name)
            holder[key] = kept


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_end_in_a_sentence_or_have_no_effect(checkpoint):
    name, weights, _ = checkpoint
    whole = torch.load(weights, weights_only=True)
    for key in whole:
        for value in ODD_TENSORS:
            torch.save(whole | {key: value}, weights)
            outcome(weights.parent, name)
        torch.save({other: value for other, value in whole.items() if other != key}, weights)
        outcome(weights.parent, name)
    for data in [*ODD, *ODD_TENSORS]:
        torch.save(data, weights)
        assert outcome(weights.parent, name) == "sentence"


@pytest.mark.parametrize(
    "bytes_", [b"", b"\x80\x04.", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02cos\nsystem\n(S'true'\ntR."]
)
def test_files_of_other_kinds_end_in_a_sentence(checkpoint, bytes_):
    name, weights, _ = checkpoint
    weights.write_bytes(bytes_ * 3)

    assert outcome(weights.parent, name) == "sentence"


def test_any_damage_to_a_file_ends_in_a_sentence_or_has_no_effect(checkpoint):
    name, weights, settings = checkpoint
    generator = torch.Generator().manual_seed(3)
    for path in (weights, settings):
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            at = int(torch.randint(len(bad), (), generator=generator))
            bad[at : at + 8] = torch.randint(256, (8,), generator=generator).to(torch.uint8).numpy().tobytes()
            path.write_bytes(bytes(bad))
            outcome(path.parent, name)
        path.write_bytes(good)
    assert outcome(weights.parent, name) == "crosscoder"


def test_the_own_format_ends_in_a_sentence_too(tmp_path):
    random_crosscoder(OWN_FIRST).save(tmp_path)
    whole = json.loads((tmp_path / "crosscoder.json").read_text())
    for value in ODD:
        for key in whole:
            (tmp_path / "crosscoder.json").write_text(json.dumps(whole | {key: value}))
            outcome(tmp_path, "crossdiff")
        (tmp_path / "crosscoder.json").write_text(json.dumps(value))
        assert outcome(tmp_path, "crossdiff") == "sentence"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_small_file_of_expanded_tensors_is_refused_before_it_fills_the_memory(tmp_path):
    expanded = torch.zeros(()).expand(2, 20_000, 20_000)
    torch.save({"W_enc": expanded, "W_dec": expanded.permute(2, 0, 1)}, tmp_path / "cc_weights.pt")
    (tmp_path / "cfg.json").write_text("{}")
    before = peak()

    with pytest.raises(CrosscoderError, match=r"tensor 'W_enc' repeats its elements"):
        read(tmp_path)
    assert peak() - before < 1 << 28


def test_a_compressed_archive_is_refused_before_it_fills_the_memory(tmp_path):
    torch.save({"W_enc": torch.zeros(50_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for entry in plain.namelist():
            deflated.writestr(entry, plain.read(entry))
    assert (tmp_path / "model.pt").stat().st_size < 1_000_000

    with pytest.raises(CrosscoderError, match=r"model\.pt is refused: it is compressed, .* holds 200 MB"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model_cfg.yaml", "config.yml"])
def test_settings_whose_aliases_mean_billions_of_entries_are_refused(tmp_path, name):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in zip("abcdefghijk", "bcdefghijkl", strict=True)]
    (tmp_path / name).write_text("\n".join(lines))

    with pytest.raises(CrosscoderError, match=r"more than 100,000 entries"):
        read_settings(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5_000, " " * 11_000_000, '{"a": 1', "\ud800"])
@pytest.mark.parametrize("name", ["config.json", "model_cfg.yaml"])
def test_settings_that_cannot_be_read_end_in_a_sentence(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))

    with pytest.raises(CrosscoderError, match=name):
        read_settings(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(CrosscoderError, match=name):
        read_settings(tmp_path / name)


def test_a_weight_that_stands_twice_is_refused(tmp_path):
    save_file({"W": torch.zeros(2), "_orig_mod.W": torch.ones(2)}, tmp_path / "model.safetensors")

    with pytest.raises(CrosscoderError, match=r"holds some weights twice"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("options", [{"scales": [math.nan, 1.0]}, {"scales": [math.inf, 1.0]}, {"scales": [0.0, 1.0]}])
def test_scales_that_are_no_factors_are_refused(tmp_path, options):
    write(random_crosscoder(), tmp_path / "out", "ckkissane")

    with pytest.raises(CrosscoderError, match=r"Give one above 0 for each"):
        read(tmp_path / "out", **options)


@pytest.mark.parametrize("threshold", [math.nan])
def test_a_threshold_that_is_no_number_is_refused(tmp_path, threshold):
    write(random_crosscoder(), tmp_path / "out", "antebe", k=3)

    with pytest.raises(CrosscoderError, match=r"threshold is not a number"):
        read(tmp_path / "out", threshold=threshold)
