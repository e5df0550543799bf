"""Lets a model answer questions, and keeps the chats: text in which it behaves as it does by itself.

What a fine-tune does where nobody wrote it down is in no given corpus. The answers are files in the home folder, named
by everything that they depend on, so that the same questions to the same model are answered once.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.corpus.document import Document, Message, canonical_chat_text
from trainer.corpus.mix import open_corpus
from trainer.errors import CorpusError, SourceError
from trainer.models.source import Source
from trainer.recipe.fitting import AnswersRecipe, CorpusPart, CorpusRecipe
from trainer.run.folder import atomic_write, home
from trainer.run.progress import Progress

BATCH = 16
"""Questions answered side by side."""
MOST_CHARACTERS = 2_000
"""Of a question; longer ones are left out, as they leave little room for an answer."""
VERSION = 1
"""Raised when the same questions would be answered otherwise."""


def answers_file(part: CorpusPart, corpus: CorpusRecipe, revision: str, questions: str | None) -> Path:
    """Where the answers of a part are kept, by the part, the model's `revision` and what its questions are."""
    asked = part.model_dump(mode="json", exclude={"share", "name"})
    # How documents are cut, shuffled and freed of duplicates decides which questions come first.
    chosen = corpus.model_dump(mode="json", exclude={"mix"})
    depends = [VERSION, asked, chosen, revision, questions]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return home() / "corpora" / "answers" / f"{digest}.jsonl"


def write_answers(part: CorpusPart, corpus: CorpusRecipe, source: Source, path: Path, progress: Progress) -> None:
    """Let a source's model answer a part's questions, and write the chats, one JSON object per line.

    Raises CorpusError if the part has no question, SourceError if the model cannot write.
    """
    assert part.answers is not None, "only of parts that are answered"
    asked = list(itertools.islice(_questions(part, corpus), part.answers.count))
    if not asked:
        raise CorpusError(f"{part.path or part.dataset} holds no question to answer: no text or first turn of a user.")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with progress.task(f"{source.name} answers", total=len(asked), unit="questions") as task:
        for first in range(0, len(asked), BATCH):
            some = asked[first : first + BATCH]
            for question, answer in zip(some, _answers(source, some, part.answers, first), strict=True):
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                lines.append(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
            task.advance(len(some))
    with atomic_write(path) as draft:
        draft.write_text("".join(lines), encoding="utf-8")


def _questions(part: CorpusPart, corpus: CorpusRecipe) -> Iterator[str]:
    """Questions of a part, in the order of its documents."""
    asked = part.model_copy(update={"answers": None})
    for document in open_corpus(corpus.model_copy(update={"mix": (asked,)})):
        question = _question(document)
        if question is not None and len(question) <= MOST_CHARACTERS:
            yield question


def _question(document: Document) -> str | None:
    """A text, or the first turn of a chat; None for a chat that does not begin with a user."""
    if document.messages is None:
        return document.text
    turns = [message for message in document.messages if message.role != "system"]
    return turns[0].content if turns and turns[0].role == "user" else None


@torch.inference_mode()
def _answers(source: Source, questions: Sequence[str], recipe: AnswersRecipe, number: int) -> list[str]:
    """Answers to some questions, of which `number` were answered before."""
    tokenizer = source.tokenizer
    prompts = [_prompt(source, question) for question in questions]
    length = max(len(ids) for ids in prompts)
    padding = next(iter(tokenizer.all_special_ids), 0)
    ids = torch.full((len(prompts), length), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    sampled: dict[str, Any] = {"do_sample": False}
    if recipe.temperature:
        torch.manual_seed(recipe.seed * 1_000_003 + number)
        sampled = {"do_sample": True, "temperature": recipe.temperature, "top_p": 1.0, "top_k": 0}
    try:
        written = source.model.generate(
            input_ids=ids.to(source.device),
            attention_mask=mask.to(source.device),
            max_new_tokens=recipe.tokens,
            pad_token_id=padding,
            **sampled,
        )
    except (AttributeError, ValueError, TypeError) as error:
        raise SourceError(f"{source.name} cannot answer: {error}. Take an instruction model.") from None
    texts = tokenizer.batch_decode(written[:, length:].cpu(), skip_special_tokens=True)
    return [_first_turn(text) for text in texts]


def _prompt(source: Source, question: str) -> list[int]:
    """Token ids of a question, up to where the answer begins; as plain text where there is no template for it."""
    text = _rendered(source, question) if source.has_chat_template else None
    if text is not None:
        ids: list[int] = source.tokenizer(text, add_special_tokens=False).input_ids
        return ids
    text = canonical_chat_text((Message("user", question), Message("assistant", "")))
    ids = source.tokenizer(text.rstrip(" "), add_special_tokens=False).input_ids
    return ids if source.bos_id is None or ids[:1] == [source.bos_id] else [source.bos_id, *ids]


def _rendered(source: Source, question: str) -> str | None:
    """A question in the model's chat template; None if the template cannot render it."""
    turns = [{"role": "user", "content": question}]
    try:
        return str(source.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    # A template is a foreign program: it may raise any exception.
    except Exception:  # noqa: BLE001
        return None


def _first_turn(text: str) -> str:
    """An answer without turns that a model without a chat template writes after it."""
    return text.split("\n\nUser:", maxsplit=1)[0].strip()
