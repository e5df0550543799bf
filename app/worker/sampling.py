"""Samples tokens from one source while a feature's direction is added to its activations.

    x' = x + strength * max_activation * decoder direction / scale        (x is the activation at the hookpoint)

A lane that is off, or whose feature does not write to the source, runs without any hook: the same arithmetic as plain
generation, to the bit.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from app.inference.messages import Positions
from trainer.errors import SourceError
from trainer.models.hookpoint import Hookpoint, editing
from trainer.models.source import Source

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
    """Token ids of a prompt, beginning with BOS; as a user's turn if `chat` and the source has a template."""
    if chat and source.has_chat_template:
        turns = [{"role": "user", "content": prompt}]
        text = source.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        text = prompt
    ids: list[int] = source.tokenizer.encode(text, add_special_tokens=False)
    if source.bos_id is not None and ids[:1] != [source.bos_id]:
        ids = [source.bos_id, *ids]
    return ids


def generate(
    source: Source, hookpoint: Hookpoint, prompt: list[int], sampling: Sampling, steering: Steering | None
) -> Iterator[int]:
    """Yield new token ids one by one; the last one may be an end-of-text token, after which nothing comes.

    Nothing stays hooked between two tokens, so lanes of one model may take turns. Raises SourceError when the prompt
    leaves no room, or the model's numbers are no longer finite.
    """
    _require_room(source, len(prompt) + sampling.max_tokens)
    device = source.device
    ends = end_tokens(source)
    generator = torch.Generator().manual_seed(sampling.seed)
    step, cache = torch.tensor([prompt], device=device), None
    for position in range(sampling.max_tokens):
        # The first pass reads the prompt; every later one reads the token generated before.
        with torch.inference_mode(), _steered(source, hookpoint, steering, reading_prompt=position == 0):
            output = source.model(input_ids=step, past_key_values=cache, use_cache=True, **_last_logits_only(source))
            logits = output.logits[0, -1].float()
        cache = output.past_key_values
        token = choose(logits, sampling, generator)
        yield token
        if token in ends:
            return
        step = torch.tensor([[token]], device=device)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from logits fp32 [vocabulary]. Raises SourceError when they are not numbers."""
    if bool(torch.isnan(logits).any()):
        raise SourceError("The model's numbers overflowed at this strength. Choose a strength nearer to zero.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # A token stays while those before it have not reached top_p yet; the likeliest always stays.
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0
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
    source: Source, hookpoint: Hookpoint, steering: Steering | None, *, reading_prompt: bool
) -> AbstractContextManager[None]:
    """The edit for one forward pass, or nothing at all."""
    if steering is None or steering.positions == ("generated" if reading_prompt else "prompt"):
        return nullcontext()
    delta = steering.delta

    def add(activation: Tensor) -> Tensor:
        return (activation.float() + delta.to(activation.device)).to(activation.dtype)

    return editing(source, hookpoint, add)


def _last_logits_only(source: Source) -> dict[str, int]:
    """Most models can leave out the logits of all positions but the last."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(source.model.forward).parameters else {}


def _require_room(source: Source, tokens: int) -> None:
    room = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and tokens > room:
        raise SourceError(
            f"Prompt and answer would be {tokens:,} tokens; {source.name} reads {room:,} at most. "
            "Shorten the prompt or ask for fewer tokens."
        )
