"""Samples tokens from one source while a feature's direction is added to its activations.

    x' = x + strength * max_activation * decoder direction / scale        (x is the activation at the hookpoint)

A lane that is off, or whose feature does not write to the source, runs without any hook: the same arithmetic as plain
generation, to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from app.inference.messages import Positions
from app.worker.chat_template import TemplateRenderer
from app.worker.growing_text import GrowingText
from trainer.errors import SourceError
from trainer.models.hookpoint import Hookpoint, editing
from trainer.models.source import Source

renderer = TemplateRenderer()

INCOMPLETE = "\ufffd"
"""What a tokenizer decodes an incomplete character to."""


@dataclass(frozen=True)
class Steering:
    """What is added at the hookpoint, and where."""

    delta: Tensor
    """fp32 [width], in raw activation space."""
    positions: Positions


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int = 0


def steering_of(direction: Tensor, *, strength: float, max_activation: float, positions: Positions) -> Steering | None:
    """The steering of a lane; None when it adds exactly nothing, so that no hook is set at all."""
    delta = strength * max_activation * direction
    return Steering(delta, positions) if bool(delta.any()) else None


def prompt_tokens(source: Source, prompt: str, *, chat: bool) -> list[int]:
    """Token ids of a prompt, beginning with BOS; as a user's turn if `chat` and the source has a template.

    Raises SourceError when the template cannot be rendered, or no token is left.
    """
    text = _as_turn(source, prompt) if chat and source.has_chat_template else prompt
    ids: list[int] = source.tokenizer.encode(text, add_special_tokens=False)
    if source.bos_id is not None and ids[:1] != [source.bos_id]:
        ids = [source.bos_id, *ids]
    if not ids:
        raise SourceError(f"{source.name}: its tokenizer makes no tokens of this prompt. Type another prompt.")
    return ids


def _as_turn(source: Source, prompt: str) -> str:
    """The prompt as a user's turn in the source's chat template."""
    try:
        template = source.tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        remedy = "Turn the chat template off, or name one of them `default` beside the model."
        raise SourceError(f"{source.name}: the model has several chat templates and no default. {remedy}") from error
    return renderer.render(source.name, template, source.tokenizer.special_tokens_map, prompt)


def generate(
    source: Source, hookpoint: Hookpoint, prompt: list[int], sampling: Sampling, steering: Steering | None
) -> Iterator[int]:
    """Yield new token ids one by one; the last one may be an end-of-text token, after which nothing comes.

    Nothing stays hooked between two tokens, so lanes of one model may take turns. Raises SourceError when the prompt
    leaves no room, the model cannot go on from a text, or its numbers are no longer finite.
    """
    _require_room(source, len(prompt) + sampling.max_tokens)
    ends = end_tokens(source)
    generator = torch.Generator().manual_seed(sampling.seed)
    text = GrowingText(source, prompt)
    for _ in range(sampling.max_tokens):
        logits = text.next_logits(lambda first: _steered(source, hookpoint, steering, first, len(prompt)))
        token = choose(logits, sampling, generator)
        yield token
        if token in ends:
            return
        text.add(token)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from logits fp32 [vocabulary]. Raises SourceError when the largest is not a finite number."""
    largest = logits.max()  # not a number when any is not
    if not bool(largest.isfinite()):
        raise SourceError("The model's numbers overflowed at this strength. Choose a strength nearer to zero.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / sampling.temperature, dim=0)
    if bool(probabilities.isnan().any()):  # too cold for fp32
        probabilities = torch.softmax((logits - largest).cpu().double() / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # A token stays while those before it have not reached top_p yet; the likeliest always stays.
        ordered[1:][(ordered.cumsum(0) - ordered)[1:] >= sampling.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def end_tokens(source: Source) -> frozenset[int]:
    """Tokens that end a text: those of the model's generation settings, and the tokenizer's own."""
    configured = source.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ends, source.tokenizer.eos_token_id] if token is not None)


class Transcript:
    """The text of the tokens generated so far; incomplete characters at its end are held back."""

    def __init__(self, source: Source, prompt: list[int]) -> None:
        self._decode: Callable[..., str] = source.tokenizer.decode
        self._ends = end_tokens(source)
        # With one token before them, tokenizers that drop a leading space keep it.
        self._before = prompt[-1:]
        self._tokens: list[int] = []

    def add(self, token: int) -> str:
        """The whole text after one more token; end-of-text tokens are not shown."""
        if token not in self._ends:
            self._tokens.append(token)
        return self.text().rstrip(INCOMPLETE)

    def text(self) -> str:
        """The whole text, incomplete characters at its end included."""
        prefix = self._decode(self._before, skip_special_tokens=False)
        whole = self._decode([*self._before, *self._tokens], skip_special_tokens=False)
        return whole[len(prefix) :]


def _steered(
    source: Source, hookpoint: Hookpoint, steering: Steering | None, first: int, prompt: int
) -> AbstractContextManager[None]:
    """The edit for one forward pass that reads the text from position `first` on, or nothing at all.

    `prompt` is the number of tokens in the prompt.
    """
    inside = max(prompt - first, 0)
    if steering is None or (steering.positions == "prompt" and not inside):
        return nullcontext()
    delta = steering.delta

    def add(activation: Tensor) -> Tensor:
        added = (activation.float() + delta.to(activation.device)).to(activation.dtype)
        if steering.positions == "prompt":
            added[:, inside:] = activation[:, inside:]
        elif steering.positions == "generated":
            added[:, :inside] = activation[:, :inside]
        return added

    return editing(source, hookpoint, add)


def _require_room(source: Source, tokens: int) -> None:
    room = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and tokens > room:
        raise SourceError(
            f"Prompt and answer would be {tokens:,} tokens; {source.name} reads {room:,} at most. "
            "Shorten the prompt or ask for fewer tokens."
        )
