"""Loads one model with its tokenizer, ready to be read or steered at a hookpoint."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trainer.device import compute_dtype, pick_device
from trainer.errors import SourceError
from trainer.models import hookpoint
from trainer.models.files import ModelFiles, find_adapter, find_model
from trainer.models.gguf import silence_libraries
from trainer.models.memory import check_memory
from trainer.recipe.fitting import SourceRecipe

FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f", "embedding_norm")


@dataclass
class Source:
    """One stream of activations: a loaded model, its tokenizer and their properties."""

    name: str
    recipe: SourceRecipe
    model: PreTrainedModel
    """In evaluation mode, without gradients."""
    tokenizer: PreTrainedTokenizerFast
    blocks: nn.ModuleList
    """The decoder blocks in order."""
    width: int
    """Size of the residual stream."""
    layers: int
    """Number of decoder blocks in the whole model, also after `truncate_after`."""
    device: torch.device
    dtype: torch.dtype
    revision: str
    """Commit on the hub, or fingerprint of the local files."""
    bos_id: int | None
    """First token of every sequence, if the model has a BOS."""
    has_chat_template: bool

    @property
    def body(self) -> nn.Module:
        """The model without its head: from token ids to the last hidden state."""
        body: nn.Module = self.model.get_decoder()
        return body

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the unembedding; the identity if there is none."""
        body = self.body
        return next((norm for name in FINAL_NORMS if (norm := getattr(body, name, None)) is not None), nn.Identity())

    @property
    def unembedding(self) -> Tensor:
        """Weight [vocabulary, width] from normed residual stream to logits. Raises SourceError if there is none."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise SourceError(f"{self.name} has no unembedding: {type(self.model).__name__} predicts no tokens.")
        weight: Tensor = head.weight
        return weight


def load_tokenizer(recipe: SourceRecipe) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a source without its model.

    Raises SourceError if there is none, or if it does not report token offsets (no fast tokenizer).
    """
    return _load_fast_tokenizer(recipe, find_model(recipe.name, recipe.model, recipe.revision, weights=False))


def load_source(recipe: SourceRecipe) -> Source:
    """Load a source's model and tokenizer, and merge its adapter.

    Raises SourceError if the model cannot be found or loaded, does not fit into memory or lacks the hookpoint;
    UsageError for an unavailable device; PackageError; DiskFull.
    """
    device = pick_device(recipe.device)
    files = find_model(recipe.name, recipe.model, recipe.revision)
    config = _load_config(recipe, files)
    dtype = _model_dtype(recipe, str(config.model_type), device)
    check_memory(recipe.name, files.folder, device, dtype, recipe.quantization)
    tokenizer = _load_fast_tokenizer(recipe, files)
    model = _load_model(recipe, files, device, dtype)
    revision = files.revision
    if recipe.adapter is not None:
        adapter = find_adapter(recipe.name, recipe.adapter)
        model, revision = _merge_adapter(recipe, model, adapter), f"{revision}+{adapter.revision}"
    model.eval().requires_grad_(False)
    text_config = model.config.get_text_config()
    source = Source(
        name=recipe.name,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        blocks=_find_blocks(recipe.name, model, int(text_config.num_hidden_layers)),
        width=int(text_config.hidden_size),
        layers=int(text_config.num_hidden_layers),
        device=model.device,
        dtype=model.dtype,
        revision=revision,
        bos_id=tokenizer.bos_token_id,
        has_chat_template=_uses_chat_template(recipe, tokenizer),
    )
    hookpoint.locate(source, recipe.hookpoint, recipe.layer)
    return source


def truncate_after(source: Source, layer: int) -> Source:
    """Drop the blocks after a layer and an untied head to free their memory; activations can still be read.

    Modifies the source in place and returns it.
    """
    del source.blocks[layer + 1 :]
    head, embeddings = source.model.get_output_embeddings(), source.model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        source.model.set_output_embeddings(None)
    return source


def _load_config(recipe: SourceRecipe, files: ModelFiles) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise SourceError(
            f"{recipe.name}: {recipe.model} is not a language model that transformers supports ({_first_line(error)}). "
            "Choose another model, or install a newer transformers."
        ) from error


def _load_fast_tokenizer(recipe: SourceRecipe, files: ModelFiles) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise SourceError(
            f"{recipe.name}: {recipe.model} has no readable tokenizer ({_first_line(error)}). "
            "Save its tokenizer beside the model."
        ) from error
    if not tokenizer.is_fast:
        raise SourceError(
            f"{recipe.name}: the tokenizer of {recipe.model} does not report where its tokens end in the text. "
            "Give a model with a fast tokenizer (tokenizer.json)."
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


def _uses_chat_template(recipe: SourceRecipe, tokenizer: PreTrainedTokenizerFast) -> bool:
    if recipe.chat == "template" and not tokenizer.chat_template:
        raise SourceError(
            f"{recipe.name}: {recipe.model} has no chat template. Use `chat: plain`, or `chat: auto` to have it "
            "rendered plainly."
        )
    return recipe.chat != "plain" and bool(tokenizer.chat_template)


def _model_dtype(recipe: SourceRecipe, family: str, device: torch.device) -> torch.dtype:
    """The requested dtype; for `auto`, bf16 where the device is fast at it."""
    if recipe.dtype == "float16" and family.startswith("gemma"):
        # Gemma's residual stream exceeds 65,504, the largest fp16 number.
        raise SourceError(f"{recipe.name}: Gemma overflows float16. Use `dtype: bfloat16` or float32.")
    if recipe.dtype != "auto":
        chosen: torch.dtype = getattr(torch, recipe.dtype)
        return chosen
    return compute_dtype(device)


def _load_model(recipe: SourceRecipe, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if recipe.quantization is not None:
        options |= {"quantization_config": _quantization(recipe, device, dtype), "device_map": {"": device}}
    try:
        model = _load_from_folder(files, options)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise SourceError(
            f"{recipe.name}: {recipe.model} cannot be loaded: {_first_line(error)}. Download it again."
        ) from error
    return model if recipe.quantization is not None else model.to(device)


def _load_from_folder(files: ModelFiles, options: dict[str, Any]) -> PreTrainedModel:
    """Load the model with torch's SDPA attention, or with the default in families that do not support it.

    Raises ValueError if weights are missing, which transformers would initialise at random.
    """
    options = {**options, "output_loading_info": True}
    with silence_libraries():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(files.folder, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product" not in str(error):
                raise
            model, report = AutoModelForCausalLM.from_pretrained(files.folder, **options)
    if report["missing_keys"]:
        raise ValueError(f"its files lack {min(report['missing_keys'])}")
    loaded: PreTrainedModel = model
    return loaded


def _quantization(recipe: SourceRecipe, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings for bitsandbytes, which quantizes while loading. Raises SourceError where it is not available."""
    if device.type != "cuda":
        raise SourceError(f"{recipe.name}: `quantization` needs a CUDA GPU. Leave it out, or run on one.")
    if find_spec("bitsandbytes") is None:
        raise SourceError(f"{recipe.name}: `quantization` needs bitsandbytes. Run `pip install bitsandbytes`.")
    if recipe.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _merge_adapter(recipe: SourceRecipe, model: PreTrainedModel, adapter: ModelFiles) -> PreTrainedModel:
    """The model with a PEFT adapter merged into its weights."""
    from peft import PeftModel  # slow import that few recipes need

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
            merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise SourceError(
            f"{recipe.name}: the adapter {recipe.adapter} does not fit {recipe.model}: {_first_line(error)}. "
            "Give the adapter that was trained on this model."
        ) from error
    return merged


def _find_blocks(name: str, model: PreTrainedModel, layers: int) -> nn.ModuleList:
    """The decoder blocks: the first ModuleList in the body with one entry per layer."""
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise SourceError(
        f"{name}: {type(model).__name__} does not hold its {layers} layers in one list. Choose a decoder-only model."
    )


def _first_line(error: BaseException) -> str:
    """First line of a library's error message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
