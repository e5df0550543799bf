"""Loads one model with its tokenizer, ready to be read or steered at a hookpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trainer.device import compute_dtype, pick_device
from trainer.errors import SourceError
from trainer.models.adapter import merge_adapter
from trainer.models.decoder import find_body, find_final_norm
from trainer.models.files import find_adapter, find_model
from trainer.models.memory import check_memory
from trainer.models.probe import check_source
from trainer.models.tokenizer import check_vocabulary, tokenizer_in, uses_chat_template
from trainer.models.weights import load_config, load_model
from trainer.recipe.fitting import SourceRecipe


@dataclass
class Source:
    """One stream of activations: a loaded model, its tokenizer and their properties."""

    name: str
    recipe: SourceRecipe
    model: PreTrainedModel
    """In evaluation mode, without gradients."""
    tokenizer: PreTrainedTokenizerFast
    body: nn.Module
    """The model without its head: from token ids to the last hidden state."""
    blocks: nn.ModuleList
    """The decoder blocks in order."""
    width: int
    """Size of the residual stream."""
    layers: int
    """Number of decoder blocks in the whole model, also after `truncate_after`."""
    vocabulary: int
    """Token ids that the model has embeddings for: 0 to one below this."""
    device: torch.device
    dtype: torch.dtype
    revision: str
    """Commit on the hub, or fingerprint of the local files."""
    bos_id: int | None
    """First token of every sequence, if the model has a BOS."""
    has_chat_template: bool
    logit_obstacle: str | None = None
    """Why the logits are not unembedding × final norm of the last residual stream; None if they are."""

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the unembedding; the identity if there is none."""
        return find_final_norm(self.body)

    @property
    def unembedding(self) -> Tensor:
        """Weight [vocabulary, width] from normed residual stream to logits. Raises SourceError if there is none."""
        head = self.model.get_output_embeddings()
        if head is None or self.logit_obstacle is not None:
            reason = self.logit_obstacle or f"{type(self.model).__name__} predicts no tokens"
            raise SourceError(f"{self.name} has no unembedding that explains its logits: {reason}.")
        weight: Tensor = head.weight
        return weight


def load_source(recipe: SourceRecipe) -> Source:
    """Load a source's model and tokenizer, merge its adapter, and check what it computes on a few words.

    Raises SourceError if the model cannot be found or loaded as asked for, does not fit into memory or lacks the
    hookpoint; UsageError for an unavailable device; PackageError; DiskFull.
    """
    device = pick_device(recipe.device)
    files = find_model(recipe.name, recipe.model, recipe.revision)
    config = load_config(recipe, files)
    dtype = _model_dtype(recipe, str(config.model_type), device)
    check_memory(recipe.name, files.folder, device, dtype, recipe.quantization)
    tokenizer = tokenizer_in(recipe, files)
    model = load_model(recipe, files, config, device, dtype)
    revision = files.revision
    if recipe.adapter is not None:
        adapter = find_adapter(recipe.name, recipe.adapter)
        model, revision = merge_adapter(recipe, model, adapter), f"{revision}+{adapter.revision}"
    model.eval().requires_grad_(False)
    text_config = model.config.get_text_config()
    layers = int(text_config.num_hidden_layers)
    body, blocks = find_body(recipe.name, model, layers)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    check_vocabulary(recipe, tokenizer, vocabulary)
    source = Source(
        name=recipe.name,
        recipe=recipe,
        model=model,
        tokenizer=tokenizer,
        body=body,
        blocks=blocks,
        width=int(text_config.hidden_size),
        layers=layers,
        vocabulary=vocabulary,
        device=model.device,
        dtype=model.dtype,
        revision=revision,
        bos_id=tokenizer.bos_token_id,
        has_chat_template=uses_chat_template(recipe, tokenizer),
    )
    source.logit_obstacle = check_source(source)
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


def _model_dtype(recipe: SourceRecipe, family: str, device: torch.device) -> torch.dtype:
    """The requested dtype; for `auto`, bf16 where the device is fast at it."""
    if recipe.dtype == "float16" and family.startswith("gemma"):
        # Gemma's residual stream exceeds 65,504, the largest fp16 number.
        raise SourceError(f"{recipe.name}: Gemma overflows float16. Use `dtype: bfloat16` or float32.")
    if recipe.dtype != "auto":
        chosen: torch.dtype = getattr(torch, recipe.dtype)
        return chosen
    return compute_dtype(device)
