"""Messages: what the pages ask of the inference worker, and what it answers, line by line of JSON."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

PROMPT_LIMIT = 8000
"""Characters in a prompt."""
TOKEN_LIMIT = 400
"""New tokens per text."""
STRENGTH_LIMIT = 100.0
"""Largest strength either way; far below it every text has fallen apart."""

Mode = Literal["add", "clamp", "ablate", "multiply"]
BUILT_MODES: tuple[Mode, ...] = ("add",)
"""Modes that the worker can do. The others need the feature's own activation at each position, and for a feature
that reads several sources one source alone does not determine it."""
Positions = Literal["all", "prompt", "generated"]
State = Literal["absent", "loading", "ready", "failed", "out_of_memory"]
LaneState = Literal["waiting", "loading", "running", "done", "stopped", "failed"]


class Message(BaseModel):
    """Frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parameters(Message):
    """Everything a person chooses; equal parameters give equal text."""

    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_LIMIT)]
    strength: Annotated[float, Field(ge=-STRENGTH_LIMIT, le=STRENGTH_LIMIT)] = 4.0
    """In units of the feature's largest activation: 1 is as strong as it ever fired by itself."""
    mode: Mode = "add"
    positions: Positions = "all"
    """Where the direction is added: everywhere, only while reading the prompt, or only to tokens generated."""
    max_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] = 60
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    chat: bool = True
    """Wrap the prompt as a user's turn where a source has a chat template."""

    @field_validator("prompt")
    @classmethod
    def _storable(cls, prompt: str) -> str:
        prompt = prompt.replace("\r\n", "\n").replace("\r", "\n")
        if not prompt.strip():
            raise ValueError("type a prompt for the models to go on from")
        if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", prompt):
            raise ValueError(f"it holds the control character U+{ord(found.group()):04X}; take that out")
        return prompt

    @field_validator("mode")
    @classmethod
    def _built(cls, mode: Mode) -> Mode:
        if mode not in BUILT_MODES:
            raise ValueError(f"mode {mode!r} is not built yet; use 'add'")
        return mode


class LaneRequest(Message):
    """One text: a source at one strength; 0 is off."""

    source: str
    strength: float


class GenerationRequest(Message):
    """What the worker needs for one generation; it asks nobody else."""

    id: str
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    feature: Annotated[int, Field(ge=0)]
    max_activation: Annotated[float, Field(gt=0)]
    """The feature's largest activation, unscaled: the unit of strength."""
    parameters: Parameters
    lanes: Annotated[tuple[LaneRequest, ...], Field(min_length=1, max_length=64)]


class SourceState(Message):
    """How far a source's model is."""

    source: str
    state: State
    reason: str = ""
    """Why it failed, as one sentence with the remedy."""
    seconds: float | None = None
    """How long loading has taken, or took."""


class Queued(Message):
    """The request waits for others."""

    kind: Literal["queued"] = "queued"
    place: int
    """1 is next."""


class Loading(Message):
    """A lane waits for its model, which is being loaded unless it is ready already."""

    kind: Literal["loading"] = "loading"
    lane: int


class Began(Message):
    """A lane begins to sample."""

    kind: Literal["began"] = "began"
    lane: int
    prompt: str
    """What the model reads, with its template and special tokens."""
    prompt_tokens: int
    writes: bool
    """Whether the feature writes to this source; if not, steering changes nothing here: exactly."""


class Said(Message):
    """A lane's text so far, whole, so that a lost message does no harm."""

    kind: Literal["said"] = "said"
    lane: int
    text: str
    tokens: int
    seconds: float


class Ended(Message):
    """A lane says no more."""

    kind: Literal["ended"] = "ended"
    lane: int
    state: Literal["done", "stopped", "failed"]
    reason: str
    """`end` when the model ended its text, `length` at the limit of tokens, else a sentence."""


class Finished(Message):
    """All lanes have ended; nothing follows."""

    kind: Literal["finished"] = "finished"


Answer = Annotated[Queued | Loading | Began | Said | Ended | Finished, Field(discriminator="kind")]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def explain(error: dict[str, Any]) -> str:
    """One sentence about one of pydantic's validation errors."""
    where = str(error["loc"][-1]) if error["loc"] else "The request"
    return f"{where}: {str(error['msg']).removeprefix('Value error, ').rstrip('.')}."
