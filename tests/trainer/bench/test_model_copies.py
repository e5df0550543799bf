"""Copies of a model differ from it in the known way and in nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.worlds.tiny_models import LINES, tiny_gemma3, tiny_llama
from trainer.bench.model_copies import BLOCK, copy_with_fewer_merges, rounded_copy
from trainer.errors import SourceError
from trainer.models.files import ModelFiles


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3])
def test_a_rounded_copy_has_at_most_fifteen_values_per_block_and_is_close(make, tmp_path: Path):
    make(tmp_path / "model")
    rounded_copy(ModelFiles(tmp_path / "model", ""), tmp_path / "copy", bits=4)

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "copy"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if weight.dim() != 2:
            assert torch.equal(weight, after[name]), "norms stay"
            continue
        for row, other in zip(weight, after[name], strict=True):
            for block, rounded in zip(row.split(BLOCK), other.split(BLOCK), strict=True):
                assert len(rounded.unique()) <= 15
                assert float((block - rounded).abs().max()) <= float(block.abs().max()) / 14 * 1.001
        assert not torch.equal(weight, after[name])
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert torch.isfinite(copy(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma3])
def test_a_copy_with_fewer_merges_has_the_same_weights_and_splits_the_same_text_into_more_tokens(make, tmp_path: Path):
    make(tmp_path / "model")
    copy_with_fewer_merges(ModelFiles(tmp_path / "model", ""), tmp_path / "copy", share=0.5)

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "copy"))
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    text = " ".join(LINES)
    whole, split = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "copy"))
    assert len(split(text).input_ids) > len(whole(text).input_ids)
    assert split.decode(split(text).input_ids, skip_special_tokens=True) == whole.decode(
        whole(text).input_ids, skip_special_tokens=True
    )
    assert len(split) == len(whole), "all token ids stay"


def test_what_cannot_be_copied_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"has no \*\.safetensors files"):
        rounded_copy(ModelFiles(tmp_path, ""), tmp_path / "copy", bits=4)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    with pytest.raises(SourceError, match=r"no tokenizer\.json with merges"):
        copy_with_fewer_merges(ModelFiles(tmp_path, ""), tmp_path / "copy", share=0.5)
