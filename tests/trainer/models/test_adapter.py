"""An adapter is merged completely, or the refusal says what of it does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.worlds.tiny_models import byte_level_bpe, tiny_llama
from trainer.errors import SourceError
from trainer.models.source import load_source
from trainer.recipe.fitting import SourceRecipe

IDS = torch.tensor([[1, 30, 31, 60, 100, 42, 77], [1, 5, 200, 301, 8, 9, 10]])
pytestmark = pytest.mark.filterwarnings("ignore")
"""Creating adapters warns of much; loading must not, and is tried under `simplefilter("error")` below."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_llama(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "untied"
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(llama, tie_word_embeddings=False, initializer_range=0.3))
    model.save_pretrained(folder)
    byte_level_bpe().save_pretrained(folder)
    return folder


def recipe(model: Path, adapter: Path) -> SourceRecipe:
    options = {"name": "tiny", "model": str(model), "layer": 1, "dtype": "float32", "adapter": str(adapter)}
    return SourceRecipe.model_validate(options)


def train(model: Path, folder: Path, config: Any, change: Callable[[Any], None] = lambda _: None) -> PeftModel:
    """An adapter whose weights are not what they begin with, saved to a folder."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    change(base)
    adapted = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return adapted.eval()


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **more})


TARGETS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
MERGEABLE = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True, lora_bias=False),
    "bias": lora(bias="lora_only"),
    "head": lora(modules_to_save=["lm_head"]),
    "norm": lora(modules_to_save=["norm"]),
    "ia3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=2, **TARGETS),
    "lokr": LoKrConfig(r=2, **TARGETS),
    "oft": OFTConfig(oft_block_size=4, **TARGETS),
    "adalora": AdaLoraConfig(target_r=2, init_r=2, total_step=10, **TARGETS),
    "layer norms": LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", MERGEABLE)
def test_kinds_that_can_be_merged_compute_what_peft_computes(untied: Path, tmp_path: Path, kind: str):
    adapted = train(untied, tmp_path, MERGEABLE[kind])

    source = load_source(recipe(untied, tmp_path))

    with torch.inference_mode():
        expected = adapted(IDS).logits
        torch.testing.assert_close(source.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
        assert not torch.allclose(plain(IDS).logits, expected, atol=1e-3)


def test_loading_an_adapter_warns_of_nothing(untied: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    train(untied, tmp_path, lora())
    recwarn.clear()

    load_source(recipe(untied, tmp_path))

    assert not recwarn.list


UNMERGEABLE = {
    "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P_TUNING": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_kinds_that_cannot_be_merged_are_named(llama: Path, tmp_path: Path, kind: str):
    train(llama, tmp_path, UNMERGEABLE[kind])

    with pytest.raises(SourceError, match=rf"is of the kind {kind}, which cannot be merged"):
        load_source(recipe(llama, tmp_path))


def edit(folder: Path, change: Callable[[str], str | None]) -> None:
    """Rename an adapter's weights, or drop those that become None."""
    path = folder / "adapter_model.safetensors"
    weights = {name: weight for key, weight in load_file(path).items() if (name := change(key)) is not None}
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda key: key.replace("base_model.model.model.", "base_model.model.language_model.model."), "has no place"),
        (lambda key: key.replace("base_model.model.", ""), "has no place|lacks"),
        (lambda key: key.replace("layers.2.", "layers.7."), "has no place for 4 of its weights"),
        (lambda _: None, "lacks 12 weights"),
        (lambda key: None if ".layers.1." in key else key, "lacks 4 weights"),
        (lambda key: None if key.endswith("lora_B.weight") else key, "lacks 6 weights"),
    ],
    ids=["wrapper", "no prefix", "deeper layers", "empty", "a layer", "a half"],
)
def test_an_adapter_that_fits_in_part_is_refused(llama: Path, tmp_path: Path, change, sentence: str):
    train(llama, tmp_path, lora())
    edit(tmp_path, change)

    with pytest.raises(SourceError, match=rf"the adapter .* does not fit .*({sentence}).*Give the adapter that was"):
        load_source(recipe(llama, tmp_path))


def test_an_adapter_of_a_deeper_model_is_refused(llama: Path, tmp_path: Path):
    deeper = tmp_path / "deeper"
    LlamaForCausalLM(LlamaConfig.from_pretrained(llama, num_hidden_layers=5)).save_pretrained(deeper)
    train(deeper, tmp_path / "adapter", lora())

    with pytest.raises(SourceError, match="the model has no place for 8 of its weights"):
        load_source(recipe(llama, tmp_path / "adapter"))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapting_a_tied_weight_is_refused_and_an_untied_one_is_merged(
    llama: Path, untied: Path, tmp_path: Path, target
):
    train(llama, tmp_path / "tied", lora(target_modules=["q_proj", target]))
    adapted = train(untied, tmp_path / "free", lora(target_modules=["q_proj", target]))

    with pytest.raises(SourceError, match=rf"adapts .*{target}, whose weight is also used at the other end"):
        load_source(recipe(llama, tmp_path / "tied"))
    with torch.inference_mode():
        merged = load_source(recipe(untied, tmp_path / "free")).model(IDS).logits
        torch.testing.assert_close(merged, adapted(IDS).logits, rtol=1e-4, atol=1e-4)


def test_tokens_that_were_added_before_training_are_named(llama: Path, tmp_path: Path):
    train(llama, tmp_path, lora(), lambda model: model.resize_token_embeddings(402))

    with pytest.raises(SourceError, match=r"with 402 tokens and the model has 400: tokens were added before"):
        load_source(recipe(llama, tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_adapter_is_damaged(llama: Path, tmp_path: Path, share: float):
    train(llama, tmp_path, lora())
    path = tmp_path / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(SourceError, match="damaged"):
        load_source(recipe(llama, tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", '{"peft_type": "MYSTERY"}', "no json"])
def test_a_config_that_is_none_is_refused(llama: Path, tmp_path: Path, content: str):
    train(llama, tmp_path, lora())
    (tmp_path / "adapter_config.json").write_text(content)

    with pytest.raises(SourceError, match="the adapter"):
        load_source(recipe(llama, tmp_path))


def test_a_folder_with_a_config_but_no_weights_is_refused(llama: Path, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))

    with pytest.raises(SourceError, match=r"the adapter .* holds no weights"):
        load_source(recipe(llama, tmp_path))


def test_an_adapter_given_as_the_model_is_told_where_it_belongs(llama: Path, tmp_path: Path):
    train(llama, tmp_path, lora())

    with pytest.raises(
        SourceError, match=r"is an adapter\. Give its base model as `model:` and this folder as `adapter:`"
    ):
        load_source(SourceRecipe(name="tiny", model=str(tmp_path), layer=1))
