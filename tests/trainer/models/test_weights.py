"""A model is loaded as its files and its config describe it, or the refusal says what is wrong: never half."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionConfig,
    Gemma3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from tests.worlds.families import letters, tiny_config
from tests.worlds.tiny_models import byte_level_bpe, tiny_llama
from trainer.errors import SourceError
from trainer.models.hookpoint import locate, read
from trainer.models.probe import check_source
from trainer.models.source import load_source
from trainer.recipe.fitting import SourceRecipe

IDS = torch.tensor([[3, 30, 31, 50, 20, 42, 17]])
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_llama(folder)
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def recipe(model: Path, **more: object) -> SourceRecipe:
    return SourceRecipe.model_validate({"name": "tiny", "model": str(model), "layer": 1, "dtype": "float32", **more})


def save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.eval().save_pretrained(folder)
    letters().save_pretrained(folder)
    return model


def configure(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


class Opens:
    """A pickle that would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    marks = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **marks)
    return Qwen2VLForConditionalGeneration(config)


def llava() -> PreTrainedModel:
    vision = CLIPVisionConfig(**VISION)
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_index=60)
    return LlavaForConditionalGeneration(config)


def mistral3() -> PreTrainedModel:
    vision = PixtralVisionConfig(**VISION)
    config = Mistral3Config(text_config=MistralConfig(**TEXT), vision_config=vision, image_token_index=60)
    return Mistral3ForConditionalGeneration(config)


@pytest.mark.parametrize("wrapper", [qwen2_vl, llava, mistral3])
def test_the_text_model_of_a_multimodal_wrapper_is_read(wrapper: Callable[[], PreTrainedModel], tmp_path: Path):
    model = save(wrapper(), tmp_path)

    source = load_source(recipe(tmp_path))

    with torch.inference_mode():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(read(source, locate(source, "resid_post", 1), IDS), states[2])
    assert (source.layers, source.width, source.logit_obstacle) == (3, 32, None)


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4))


def bart() -> PreTrainedModel:
    sides = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    return BartForConditionalGeneration(BartConfig(vocab_size=64, d_model=32, **sides))


@pytest.mark.parametrize("kind", [t5, bart, lambda: ViTModel(ViTConfig(**VISION))], ids=["t5", "bart", "vit"])
def test_other_kinds_than_causal_language_models_are_named(kind: Callable[[], PreTrainedModel], tmp_path: Path):
    model = save(kind(), tmp_path)

    with pytest.raises(
        SourceError, match=rf"is a {model.config.model_type} model, and not one that predicts each next"
    ):
        load_source(recipe(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_is_no_language_model(kind: str, tmp_path: Path):
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(**{**TEXT, "head_dim": None}))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**TEXT))
    save(model, tmp_path)

    with pytest.raises(
        SourceError, match=rf"lack (cls|lm_head).*saved as {type(model).__name__}; give a model that was"
    ):
        load_source(recipe(tmp_path))


def test_a_model_that_reads_both_ways_is_refused(tmp_path: Path):
    save(Gemma3ForCausalLM(tiny_config("gemma3_text", use_bidirectional_attention=True)), tmp_path)

    with pytest.raises(SourceError, match="Gemma3ForCausalLM reads text both ways"):
        load_source(recipe(tmp_path))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"intermediate_size": 48}, r"down_proj\.weight of .* is \[16, 32\] in its files and \[16, 48\] by its config"),
        ({"vocab_size": 500}, r"embed_tokens\.weight of .* is \[400, 16\] in its files and \[500, 16\] by its config"),
        ({"num_hidden_layers": 4}, r"the files of .* lack model\.layers\.3\..*\. Download it again, or save it again"),
        ({"num_hidden_layers": 2}, r"holds model\.layers\.2\..*, for which its config\.json has no place"),
        ({"model_type": "mystery"}, r"is not a language model that transformers supports"),
        ({"model_type": None}, r"is not a language model that transformers supports"),
    ],
)
def test_a_config_of_another_model_is_refused(copy: Path, settings: dict, sentence: str):
    configure(copy, **settings)

    with pytest.raises(SourceError, match=sentence):
        load_source(recipe(copy))


@pytest.mark.parametrize("extra", ["self_attn.q_proj.bias", "mlp.down_proj.weight_scale", "pre_norm.weight"])
def test_weights_of_a_block_that_its_config_has_no_place_for_are_refused(copy: Path, extra: str):
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, f"model.layers.1.{extra}": torch.ones(16)}, copy / "model.safetensors", {"format": "pt"})

    with pytest.raises(SourceError, match=rf"holds model\.layers\.1\.{extra}, for which its config"):
        load_source(recipe(copy))


@pytest.mark.parametrize(
    "extra", ["vision_tower.layers.0.weight", "mtp.layers.0.weight", "model.layers.3.eh_proj.weight", "score.weight",
              "model.layers.1.self_attn.rotary_emb.inv_freq"],
)  # fmt: skip
def test_weights_beside_the_decoder_are_left_alone(copy: Path, extra: str):
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, extra: torch.ones(16)}, copy / "model.safetensors", {"format": "pt"})

    assert load_source(recipe(copy)).layers == 3


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "hqq"])
def test_a_quantized_folder_names_its_method_and_what_is_missing(copy: Path, method: str):
    configure(copy, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})

    with pytest.raises(SourceError, match=rf"is quantized with {method} and cannot be loaded so here: .* Install what"):
        load_source(recipe(copy))


def test_an_attention_package_that_the_config_names_is_not_needed(copy: Path):
    configure(copy, _attn_implementation="flash_attention_2")

    assert load_source(recipe(copy)).model.config._attn_implementation == "sdpa"


def test_code_beside_a_model_is_never_run_and_never_asked_about(copy: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (copy / "configuration_own.py").write_text(code)
    (copy / "modeling_own.py").write_text(code)
    own = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}

    configure(copy, auto_map=own)
    assert load_source(recipe(copy)).layers == 3  # the family is known, so its own class is used
    configure(copy, model_type="own", auto_map=own)
    with pytest.raises(SourceError, match="brings code of its own, which is never run"):
        load_source(recipe(copy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_would_run_something_is_refused(copy: Path, tmp_path: Path, raw: bool):
    (copy / "model.safetensors").unlink()
    path = copy / "pytorch_model.bin"
    content = {"model.norm.weight": Opens(tmp_path / "ran")}
    path.write_bytes(pickle.dumps(content, protocol=2)) if raw else torch.save(content, path)

    with pytest.raises(SourceError, match="in a pickle that is damaged or holds more than tensors, and is not read"):
        load_source(recipe(copy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cut_file_is_told_from_an_unsupported_one(copy: Path, name: str, share: float):
    path = copy / name
    if name.endswith(".bin"):
        torch.save(load_file(copy / "model.safetensors"), path)
        (copy / "model.safetensors").unlink()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(SourceError, match=r"(damaged|cannot be read).*(again|safetensors)"):
        load_source(recipe(copy))


def test_a_folder_without_weights_or_without_one_of_its_files_says_so(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="holds no weights"):
        load_source(recipe(copy))

    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"lacks a file: .*model-00001-of-00002\.safetensors"):
        load_source(recipe(copy))


def test_a_folder_that_holds_a_model_and_an_adapter_is_refused(copy: Path):
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')

    with pytest.raises(SourceError, match=r"holds an adapter_config\.json beside a model"):
        load_source(recipe(copy))


@pytest.mark.parametrize("special", [False, True])
def test_ordinary_tokens_beyond_the_embeddings_are_refused(copy: Path, special: bool):
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<extra>"], special_tokens=special)
    tokenizer.save_pretrained(copy)

    if special:  # as Gemma 3 has one for images
        assert load_source(recipe(copy)).vocabulary == 400
        return
    with pytest.raises(SourceError, match=r"knows 401 tokens, such as '<extra>', and the model has embeddings for 400"):
        load_source(recipe(copy))


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_that_computes_no_finite_number_is_refused_with_its_dtype(tmp_path: Path, number: str, dtype: str):
    model = tiny_llama(tmp_path)
    model.model.layers[0].mlp.up_proj.weight.fill_(float(number))
    model.save_pretrained(tmp_path)

    with pytest.raises(SourceError, match=rf"activations at resid_post\.1 are NaN or infinite in {dtype} for every"):
        load_source(recipe(tmp_path, dtype=dtype, device="cpu"))


def test_logits_that_are_not_explained_by_the_unembedding_are_left_out(copy: Path):
    class Other(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.roll(1, dims=-1)
            return output

    source = load_source(recipe(copy))
    assert source.logit_obstacle is None
    source.model.__class__ = Other
    source.logit_obstacle = check_source(source)
    with pytest.raises(SourceError, match="its logits are not its unembedding of the normed residual stream"):
        _ = source.unembedding
