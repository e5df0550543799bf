"""Files are read without executing code from them, and damaged ones are described."""

import math
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import CrosscoderError
from trainer.interchange.tensor_files import read_settings, read_tensors


class Hostile:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, new_format):
    path = tmp_path / "model.pt"
    entries = {"W_enc": torch.zeros(2), "extra": Hostile(tmp_path / "ran")}
    torch.save(entries, path, _use_new_zipfile_serialization=new_format)

    with pytest.raises(CrosscoderError, match="is refused: opening it could run code"):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"extra": Hostile(tmp_path / "ran")}, protocol=2))

    with pytest.raises(CrosscoderError, match="is refused"):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


def test_plain_values_beside_tensors_are_read(tmp_path):
    torch.save({"b": torch.ones(2), "_partition_config": {"dict_size": 8, "share": 0.05}}, tmp_path / "model.pt")

    file = read_tensors(tmp_path / "model.pt")

    assert file.entries["_partition_config"] == {"dict_size": 8, "share": 0.05}


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_called_that(tmp_path, name, kept):
    path = tmp_path / name
    entries = {"W": torch.rand(300)}
    if name.endswith(".pt"):
        torch.save(entries, path)
    else:
        save_file(entries, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])

    with pytest.raises(CrosscoderError, match=r"truncated or no tensor file.*Copy it again"):
        read_tensors(path)


@pytest.mark.parametrize(("name", "content"), [("a.pt", b"hello there"), ("a.safetensors", b"hello there")])
def test_a_file_of_another_kind_is_called_that(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CrosscoderError, match="no tensor file"):
        read_tensors(tmp_path / name)


def test_a_list_of_tensors_is_no_checkpoint(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "model.pt")

    with pytest.raises(CrosscoderError, match="holds a list, expected weights by name"):
        read_tensors(tmp_path / "model.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CrosscoderError, match=r"gone.pt does not exist"):
        read_tensors(tmp_path / "gone.pt")


def saved(tmp_path, **entries):
    torch.save(entries, tmp_path / "model.pt")
    return read_tensors(tmp_path / "model.pt")


def test_a_tensor_of_the_wrong_shape_is_named_with_the_shape_expected(tmp_path):
    file = saved(tmp_path, W_enc=torch.zeros(2, 3, 4))

    with pytest.raises(CrosscoderError, match=r"'W_enc' has shape \[2, 3, 4\], expected \[2, 3, 5\]"):
        file.tensor("W_enc", (2, 3, 5))
    with pytest.raises(CrosscoderError, match=r"'W_enc' has shape \[2, 3, 4\], expected \[sources, width\]"):
        file.tensor("W_enc", ("sources", "width"))
    assert file.tensor("W_enc", ("sources", 3, "features")).shape == (2, 3, 4)


def test_a_missing_tensor_is_named_with_the_shape_expected(tmp_path):
    with pytest.raises(CrosscoderError, match=r"lacks tensor 'b_dec' of shape \[2, 3\]"):
        saved(tmp_path, W_enc=torch.zeros(2)).tensor("b_dec", (2, 3))


def test_a_value_in_place_of_a_tensor_is_named(tmp_path):
    with pytest.raises(CrosscoderError, match="holds a str in place of tensor 'b_dec'"):
        saved(tmp_path, b_dec="soon").tensor("b_dec", (2, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    with pytest.raises(CrosscoderError, match="'W_enc' holds NaN or infinity"):
        saved(tmp_path, W_enc=torch.tensor([1.0, bad])).tensor("W_enc", (2,))


def test_an_entry_that_the_format_does_not_have_is_named(tmp_path):
    with pytest.raises(CrosscoderError, match="holds 'W_gate', which this format does not have"):
        saved(tmp_path, W_enc=torch.zeros(2), W_gate=torch.zeros(2)).require_known(("W_enc",))


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), ("config.json", "[1]"), ("model_cfg.yaml", "a: [1"), ("m.yaml", "3")]
)
def test_settings_that_cannot_be_read_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    with pytest.raises(CrosscoderError, match=f"{name}.*Copy it again"):
        read_settings(tmp_path / name)


def test_missing_settings_are_empty(tmp_path):
    assert read_settings(tmp_path / "config.json") == {}


def test_yaml_that_would_build_an_object_is_refused(tmp_path):
    (tmp_path / "model_cfg.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/ran']")

    with pytest.raises(CrosscoderError, match="not readable"):
        read_settings(tmp_path / "model_cfg.yaml")
    assert not (tmp_path / "ran").exists()
