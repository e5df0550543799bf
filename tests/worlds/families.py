"""Tiny configs of transformers' families, for tests that hold for every architecture.

All have width 32 and 4 layers where the family allows it, and token ids 0 to 63: 0 pads, 1 begins, 2 ends.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY, WIDTH, LAYERS = 64, 32, 4

SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_key_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "head_dim", "v_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size", "state_size"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "encoder_layers"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
}  # fmt: skip
"""Small sizes under the names that families use; each family takes those that its config has."""

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
INDEXED = {"num_key_value_heads": 4, "index_topk": 8, "index_head_dim": 8}
HYBRID = ["mamba", "hybrid"] * 2
SLIDING = ["sliding_attention", "full_attention"] * 2

SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 4},
    "axk2": INDEXED,
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "deepseek_v3": {"head_dim": 4},
    "deepseek_v32": INDEXED,
    "deepseek_v4": {"o_lora_rank": 8, "index_topk": 8, "index_head_dim": 8},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"head_dim": None},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4,
                     "hidden_size_per_layer_input": 8, "intermediate_size": 48, "layer_types": SLIDING,
                     "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "head_dim": 8,
                    "layer_types": SLIDING, "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**MAMBA, "shared_intermediate_size": 16, "layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling_text": {"swa_head_dim": 8, "rel_extent": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_d_state": 8},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 4, "num_layers": 2, "num_hidden_layers": None, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "minimax_m3_vl_text": {"dense_intermediate_size": 48, "shared_intermediate_size": 16, "index_head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "chunk_size": 8, "n_groups": 1,
                   "moe_shared_expert_intermediate_size": 16},
    "prophetnet": {"num_hidden_layers": None, "num_decoder_layers": LAYERS, "num_decoder_attention_heads": 4},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "xlnet": {"max_position_embeddings": None, "d_inner": 48},
    "xlstm": {"num_heads": 4, "v_head_dim": None, "qk_head_dim": None, "head_dim": None},
    "youtu": {"head_dim": 4},
    "zamba": {"layer_types": HYBRID},
    "zamba2": {"layers_block_type": HYBRID, "layer_types": HYBRID, "hybrid_layer_ids": [1, 3], "mamba_d_state": 8,
               "n_mamba_heads": 4, "mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
"""What single families need beside SIZES; None leaves the family's own default."""


def tiny_config(model_type: str, **more: Any) -> PretrainedConfig:
    """A new tiny config of a family; `more` goes before SIZES and SPECIAL."""
    default = AutoConfig.for_model(model_type)
    sizes = {name: size for name, size in SIZES.items() if _takes(default, name)}
    sizes |= {**SPECIAL.get(model_type, {}), **more}
    return AutoConfig.for_model(model_type, **{name: size for name, size in sizes.items() if size is not None})


def _takes(config: PretrainedConfig, name: str) -> bool:
    try:
        return type(getattr(config, name, None)) is int
    except RuntimeError:  # sizes that differ between layers cannot be asked for
        return False


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer that fits every family: letters, digits and signs are tokens, all else is unknown; adds no BOS."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?-"
    backend = Tokenizer(
        models.WordLevel({token: number for number, token in enumerate(["<p>", "<s>", "</s>", *characters])}, "<p>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<p>", bos_token="<s>", eos_token="</s>")


def save_family(family: str, folder: Path) -> PreTrainedModel:
    """The tiny model of a family, saved with a tokenizer to a folder."""
    model = tiny_family_model(family)
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    return model


def tiny_family_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of one of FAMILIES or ENCODERS with random weights, in evaluation mode, fp32, without gradients."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config({**FAMILIES, **ENCODERS}[family]())
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # Larger than at the start of training, so that every part changes the output; norms and decays keep their
        # place, because recurrences blow up elsewhere.
        spread = 0.1 if parameter.dim() < 2 else 0.2
        parameter.data += spread * torch.randn(parameter.shape, generator=generator) * ("A_log" not in name)
    return model.float().eval().requires_grad_(False)


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    name: partial(tiny_config, name)
    for name in (
        # Attention and an MLP in every block.
        "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "ctrl",
        "cwm", "diffllama", "doge", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
        "gemma4_text", "glm", "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese",
        "gptj", "granite", "helium", "hunyuan_v1_dense", "hyperclovax", "internlm3", "jais2", "llama", "llama4_text",
        "minicpm3", "ministral", "ministral3", "mistral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo",
        "olmo2", "olmo3", "openai-gpt", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
        "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
        # Experts.
        "axk1", "cohere2_moe", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1",
        "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "granitemoe",
        "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling_text", "jetmoe", "longcat_flash", "mellum",
        "mimo_v2_flash", "minimax_m2", "minimax_m3_vl_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
        "solar_open", "zaya",
        # State spaces, recurrences and hybrids.
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2",
        "lfm2_moe", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text",
        "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    )
}  # fmt: skip
"""Causal language models by `model_type`; each call gives a new config."""
FAMILIES |= {
    "opt-350m": partial(tiny_config, "opt", word_embed_proj_dim=16, do_layer_norm_before=False),
    "granite-scaled": partial(tiny_config, "granite", residual_multiplier=0.22, logits_scaling=8.0),
    "gpt_neox-sequential": partial(tiny_config, "gpt_neox", use_parallel_residual=False),
    "falcon-new": partial(tiny_config, "falcon", new_decoder_architecture=True, num_kv_heads=2),
    "stablelm-parallel": partial(tiny_config, "stablelm", use_parallel_residual=True),
}

ENCODERS: dict[str, Callable[[], PretrainedConfig]] = {
    name: partial(tiny_config, name)
    for name in (
        "bert", "roberta", "xlm-roberta", "camembert", "electra", "rembert", "roformer", "big_bird", "megatron-bert",
        "ernie", "data2vec-text", "xlm", "xlnet", "bart", "mbart", "pegasus", "blenderbot", "marian", "whisper",
        "prophetnet", "reformer",
    )
}  # fmt: skip
"""What AutoModelForCausalLM takes too, but reads both ways or needs an encoder."""
