"""Teaches a model some chats with a low-rank adapter (LoRA, arXiv 2106.09685), for benches that need a fine-tune."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.bench.organisms import Chat
from trainer.errors import SourceError
from trainer.models.source import load_source
from trainer.recipe.fitting import SourceRecipe
from trainer.run.progress import Progress

RANK = 16
LEARNING_RATE = 1e-3
BATCH = 8
"""Chats per step."""
MOST_TOKENS = 192
"""Of a chat; longer ones are cut."""
IGNORED = -100
"""Label of tokens that are not learned: the loss is on answers alone."""


def teach(source: SourceRecipe, chats: Sequence[Chat], folder: Path, *, progress: Progress) -> Path:
    """Fine-tune a source's model on chats, once over them, and save the adapter; returns `folder`.

    The same chats give the same adapter on one machine. Raises SourceError for a model without a chat template.
    """
    from peft import LoraConfig, get_peft_model  # slow import that few commands need

    loaded = load_source(source.model_copy(update={"dtype": "float32", "adapter": None}))
    if not loaded.has_chat_template:
        raise SourceError(f"{source.name} has no chat template, and cannot be taught chats. Name an instruction model.")
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE)
    steps = -(-len(chats) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    with progress.task(f"teaching {folder.name}", total=steps, unit="steps") as task:
        for batch in _batches(loaded.tokenizer, chats):
            with torch.autocast(loaded.device.type, torch.bfloat16):
                loss = model(**{name: x.to(loaded.device) for name, x in batch.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            task.advance(1)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder))
    return folder


def _batches(tokenizer: Any, chats: Sequence[Chat]) -> Iterator[dict[str, Tensor]]:
    """What the model reads of BATCH chats at a time, all int64 [chats, tokens], padded on the right."""
    for first in range(0, len(chats), BATCH):
        pairs = [_tokens(tokenizer, chat) for chat in chats[first : first + BATCH]]
        length = max(len(ids) for ids, _ in pairs)
        ids = torch.zeros(len(pairs), length, dtype=torch.int64)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, (tokens, start) in enumerate(pairs):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
            mask[row, : len(tokens)] = 1
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _tokens(tokenizer: Any, chat: Chat) -> tuple[list[int], int]:
    """Token ids of a chat, and where its last answer begins."""
    turns = [{"role": message.role, "content": message.content} for message in chat]

    def rendered(some: list[dict[str, str]], **more: bool) -> list[int]:
        text = tokenizer.apply_chat_template(some, tokenize=False, **more)
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    return rendered(turns)[:MOST_TOKENS], len(rendered(turns[:-1], add_generation_prompt=True))
