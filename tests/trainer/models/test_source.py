"""Sources load from every kind of location, and failures give a clear message."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from tests.worlds.tiny_models import tiny_gemma3, tiny_llama
from trainer.errors import PackageError, SourceError, UsageError
from trainer.models.files import fingerprint
from trainer.models.hookpoint import locate, read
from trainer.models.source import load_source, truncate_after
from trainer.models.tokenizer import load_tokenizer
from trainer.recipe.fitting import SourceRecipe

IDS = torch.tensor([[1, 30, 31, 60, 100, 42, 77], [1, 5, 200, 301, 8, 9, 10]])


peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""Creating an adapter uses deprecated names of transformers; loading one must not warn."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_llama(folder)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gemma"
    tiny_gemma3(folder)
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return shutil.copytree(llama, tmp_path / "copy")


def recipe(model: Path | str, **more: object) -> SourceRecipe:
    return SourceRecipe.model_validate({"name": "tiny", "model": str(model), "layer": 1, "dtype": "float32", **more})


def test_a_folder_gives_a_source_with_the_properties_of_its_model(llama: Path, gemma: Path):
    one, other = load_source(recipe(llama)), load_source(recipe(gemma))

    assert (one.width, one.layers, one.bos_id, one.has_chat_template) == (16, 3, 1, True)
    assert (other.width, other.layers, other.bos_id, other.has_chat_template) == (24, 4, 2, False)
    assert (one.name, one.dtype, one.device.type) == ("tiny", torch.float32, "cpu")
    assert not one.model.training
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    assert one.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_final_norm_and_unembedding_map_the_last_residual_stream_to_logits(family: str, request):
    source = load_source(recipe(request.getfixturevalue(family)))

    stream = read(source, locate(source, "resid_post", source.layers - 1), IDS)

    with torch.inference_mode():
        logits = source.final_norm(stream) @ source.unembedding.T
        torch.testing.assert_close(logits, source.model(IDS).logits)


def test_a_truncated_source_reads_the_same_activations_with_fewer_weights(llama: Path):
    source = load_source(recipe(llama))
    hookpoint = locate(source, "resid_post", 1)
    before, weights = read(source, hookpoint, IDS), sum(p.numel() for p in source.model.parameters())

    assert truncate_after(source, 1) is source

    assert torch.equal(read(source, hookpoint, IDS), before)
    assert len(source.blocks) == 2
    assert source.layers == 3
    # One block of width 16: queries, output 16x16; keys, values 8x16; MLP 3x32x16; two norms.
    assert weights - sum(p.numel() for p in source.model.parameters()) == 2 * 256 + 2 * 128 + 3 * 512 + 32


def test_truncating_drops_an_untied_head_but_not_a_tied_one(llama: Path, tmp_path: Path):
    config = LlamaConfig.from_pretrained(llama, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    load_tokenizer(recipe(llama)).save_pretrained(tmp_path)

    untied, tied = truncate_after(load_source(recipe(tmp_path)), 1), truncate_after(load_source(recipe(llama)), 1)

    with pytest.raises(SourceError, match="tiny has no unembedding"):
        _ = untied.unembedding
    assert read(untied, locate(untied, "resid_post", 1), IDS).shape == (2, 7, 16)
    assert tied.unembedding.shape == (400, 16)


@pytest.mark.parametrize(("chat", "expected"), [("auto", True), ("template", True), ("plain", False)])
def test_the_recipe_decides_whether_a_chat_template_is_used(llama: Path, chat: str, expected: bool):
    assert load_source(recipe(llama, chat=chat)).has_chat_template is expected


def test_a_chat_template_requested_from_a_model_without_one_is_rejected(gemma: Path):
    with pytest.raises(SourceError, match=r"has no chat template\. Use `chat: plain`"):
        load_source(recipe(gemma, chat="template"))


def test_the_revision_of_a_folder_depends_on_its_files_only(llama: Path, copy: Path):
    assert load_source(recipe(copy)).revision == load_source(recipe(llama)).revision == fingerprint(llama)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert load_source(recipe(copy)).revision != fingerprint(llama)


def test_a_tokenizer_loads_without_its_model(copy: Path):
    (copy / "model.safetensors").unlink()

    tokenizer = load_tokenizer(recipe(copy))

    assert tokenizer("the dog", add_special_tokens=False)["input_ids"]
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_without_a_padding_token_gets_one(copy: Path):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))

    assert load_tokenizer(recipe(copy)).pad_token == "<|im_end|>"


@peft_warns
def test_an_adapter_is_merged_into_the_model(llama: Path, tmp_path: Path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")

    source = load_source(recipe(llama, adapter=str(tmp_path / "adapter")))

    with torch.inference_mode():
        expected, plain = adapted(IDS).logits, load_source(recipe(llama)).model(IDS).logits
        torch.testing.assert_close(source.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1
    assert source.revision.startswith(f"{fingerprint(llama)}+")
    assert len(source.blocks) == 3


@peft_warns
def test_an_adapter_of_another_model_or_a_folder_without_one_is_rejected(llama: Path, gemma: Path, tmp_path: Path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(gemma), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "adapter")

    with pytest.raises(SourceError, match=r"the adapter .* does not fit"):
        load_source(recipe(llama, adapter=str(tmp_path / "adapter")))
    with pytest.raises(SourceError, match=r"not a PEFT adapter: it holds no adapter_config\.json"):
        load_source(recipe(llama, adapter=str(llama)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", r"there is no model at nowhere\. Give a folder"),
        ("missing.gguf", r"there is no model at missing\.gguf"),
        ("some org/some model", r"there is no model at"),
        ("pypi:nothing", r"not a package address"),
        ("someone/unheard-of", r"the hub is not reachable and someone/unheard-of is not in the local cache"),
    ],
)
def test_a_model_that_cannot_be_found_is_rejected_with_the_accepted_kinds(model: str, message: str):
    with pytest.raises((SourceError, PackageError), match=message):
        load_source(recipe(model))


def test_a_folder_without_a_model_is_rejected(tmp_path: Path):
    with pytest.raises(SourceError, match=r"holds no config\.json\. Give the folder that holds config\.json"):
        load_source(recipe(tmp_path))
    (tmp_path / "big.gguf").touch()
    with pytest.raises(SourceError, match=r"Give the file itself: .*big\.gguf"):
        load_source(recipe(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"notes\.txt is neither a folder nor a \.gguf file"):
        load_source(recipe(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is damaged"),
        ("config.json", '{"model_type": "unheard-of"}', "is not a language model that transformers supports"),
        ("model.safetensors", "not weights at all", "is damaged: its header cannot be read"),
        ("tokenizer.json", "{", "has no readable tokenizer"),
    ],
)
def test_a_damaged_folder_is_rejected_with_the_damaged_file(copy: Path, file: str, content: str, message: str):
    (copy / file).write_text(content)

    with pytest.raises(SourceError, match=message):
        load_source(recipe(copy))


def test_truncated_weights_are_rejected(copy: Path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(SourceError, match=r"has a damaged weight file: .*\. Download it again"):
        load_source(recipe(copy))


def test_missing_weights_are_rejected(copy: Path):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(SourceError, match=r"the files of .* lack model\.layers\.2\.mlp\.up_proj\.weight"):
        load_source(recipe(copy))


def test_a_model_larger_than_memory_is_rejected_before_loading(copy: Path):
    # A header that promises ten million million weights, as a file of 40 TB would.
    header = json.dumps({"huge": {"dtype": "F32", "shape": [10**7, 10**6], "data_offsets": [0, 4 * 10**13]}}).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    with pytest.raises(SourceError, match=r"tiny needs about 42840\.8 GiB and only \d+\.\d GiB of memory are free"):
        load_source(recipe(copy))


def test_a_layer_out_of_range_is_rejected(llama: Path):
    with pytest.raises(SourceError, match="tiny has no layer 3: its layers are 0 to 2"):
        load_source(recipe(llama, layer=3))


def test_a_tokenizer_without_offsets_is_rejected(copy: Path):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(copy)

    with pytest.raises(SourceError, match="does not report where its tokens end"):
        load_tokenizer(recipe(copy))


def test_gemma_is_never_run_in_float16(gemma: Path):
    with pytest.raises(SourceError, match=r"Gemma overflows float16\. Use `dtype: bfloat16`"):
        load_source(recipe(gemma, dtype="float16"))


def test_unavailable_devices_and_quantization_are_rejected(llama: Path):
    with pytest.raises(UsageError, match="teapot"):
        load_source(recipe(llama, device="teapot"))
    with pytest.raises(SourceError, match="`quantization` needs a CUDA GPU"):
        load_source(recipe(llama, device="cpu", quantization="4bit"))


def test_the_default_dtype_is_bf16_only_if_the_cpu_supports_it(llama: Path):
    fast = torch.cpu.get_capabilities().get("avx512_bf16", False)

    assert load_source(recipe(llama, dtype="auto", device="cpu")).dtype is (torch.bfloat16 if fast else torch.float32)
