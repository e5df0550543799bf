"""Loads a source's tokenizer, which must report where its tokens end in the text."""

import json
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.errors import SourceError
from trainer.models.files import ModelFiles, find_model
from trainer.models.refusal import first_line, runs_own_code
from trainer.recipe.fitting import SourceRecipe


def load_tokenizer(recipe: SourceRecipe) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a source without its model.

    Raises SourceError if there is none, or if it does not report token offsets (no fast tokenizer).
    """
    return tokenizer_in(recipe, find_model(recipe.name, recipe.model, recipe.revision, weights=False))


def tokenizer_in(recipe: SourceRecipe, files: ModelFiles) -> PreTrainedTokenizerFast:
    """The tokenizer in a source's model folder. Raises SourceError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    # The library of tokenizers raises plain Exception for a damaged file.
    except Exception as error:
        if runs_own_code(error):
            remedy = "It would need code of its own, which is never run. Give a model with a tokenizer.json."
        else:
            remedy = "Save its tokenizer beside the model."
        raise SourceError(
            f"{recipe.name}: {recipe.model} has no readable tokenizer ({first_line(error)}). {remedy}"
        ) from error
    if not tokenizer.is_fast:
        raise SourceError(
            f"{recipe.name}: the tokenizer of {recipe.model} does not report where its tokens end in the text. "
            "Give a model with a fast tokenizer (tokenizer.json)."
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    _keep_whole_offsets(tokenizer.backend_tokenizer)
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


def uses_chat_template(recipe: SourceRecipe, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether chats are rendered by the tokenizer's template. Raises SourceError if it is asked for and missing."""
    if recipe.chat == "template" and not tokenizer.chat_template:
        raise SourceError(
            f"{recipe.name}: {recipe.model} has no chat template. Use `chat: plain`, or `chat: auto` to have it "
            "rendered plainly."
        )
    return recipe.chat != "plain" and bool(tokenizer.chat_template)


def check_vocabulary(recipe: SourceRecipe, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Raise SourceError if ordinary tokens have ids beyond the model's `rows` of embeddings.

    Some multimodal families have a few added tokens beyond, for images; texts are cut before those.
    """
    beyond = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) > rows
    added = tokenizer.added_tokens_decoder
    lost = [token.content for number, token in added.items() if number >= rows and not token.special]
    if beyond or lost:
        raise SourceError(
            f"{recipe.name}: the tokenizer of {recipe.model} knows {len(tokenizer):,} tokens"
            + (f", such as {lost[0]!r}," if lost else "")
            + f" and the model has embeddings for {rows:,}. Give the tokenizer that the model was trained with, or the "
            "model whose embeddings were extended."
        )


def _keep_whole_offsets(backend: Any) -> None:
    """Have offsets include the white space that a token holds; some post-processors cut it off."""
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    parts = [state, *state.get("processors", ())]
    if any(part.get("trim_offsets") for part in parts):
        for part in parts:
            if "trim_offsets" in part:
                part["trim_offsets"] = False
        whole = backend.post_processor
        whole.__setstate__(json.dumps(state).encode())
        backend.post_processor = whole
