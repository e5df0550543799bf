"""The protocol between explorer and inference worker: requests as JSON, answers as one JSON object per line."""

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
"""Modes that the worker supports. The others need the feature's own activation at each position, which one source
alone does not determine when the feature reads several."""
Positions = Literal["all", "prompt", "generated"]
State = Literal["absent", "loading", "ready", "failed", "out_of_memory"]
LaneState = Literal["waiting", "loading", "running", "done", "stopped", "failed"]


class Message(BaseModel):
    """Frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parameters(Message):
    """Everything that decides the text; equal parameters give equal text."""

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


class Lane(Message):
    """One steered text: a source at one strength, and how far it is.

    The only type of a steered text: the worker's protocol, what is under way, the API and the pages share it;
    `app/generations/store.py` converts it to and from its table.
    """

    source: str
    strength: float = Field(description="In units of the feature's largest activation; 0 is off.")
    state: LaneState = Field(default="waiting", description="waiting, loading, running, done, stopped or failed.")
    reason: str = Field(default="", description="How it ended: end, length, or a sentence when it failed.")
    writes: bool | None = Field(
        default=None, description="Whether the feature writes to this source; if not, steering is exactly off."
    )
    prompt: str = Field(default="", description="What the model read, with its template and special tokens.")
    text: str = ""
    tokens: int = 0
    seconds: float = Field(default=0.0, description="Time spent sampling, without waiting and loading.")


class GenerationRequest(Message):
    """What the worker needs for one generation; it asks nobody else."""

    id: str
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
    feature: Annotated[int, Field(ge=0)]
    max_activation: Annotated[float, Field(gt=0)]
    """The feature's largest activation, unscaled: the unit of strength."""
    parameters: Parameters
    lanes: Annotated[tuple[Lane, ...], Field(min_length=1, max_length=64)]
    """The worker reads their source and strength."""


class SourceState(Message):
    """Whether a source's model is loaded."""

    source: str
    state: State
    reason: str = ""
    """Why loading failed, as one sentence with the remedy."""
    seconds: float | None = None
    """How long loading has taken, or took."""


class Queued(Message):
    """The request waits for others."""

    kind: Literal["queued"] = "queued"
    place: int
    """1 is next."""


class Loading(Message):
    """A lane waits for its model, which is loaded first if it is not in memory."""

    kind: Literal["loading"] = "loading"
    lane: int


class Started(Message):
    """A lane starts sampling."""

    kind: Literal["started"] = "started"
    lane: int
    prompt: str
    """What the model reads, with its template and special tokens."""
    prompt_tokens: int
    writes: bool
    """Whether the feature writes to this source; if not, steering changes exactly nothing here."""


class TextUpdate(Message):
    """A lane's whole text so far, so that a lost update does no harm."""

    kind: Literal["text"] = "text"
    lane: int
    text: str
    tokens: int
    seconds: float


class Ended(Message):
    """A lane has ended."""

    kind: Literal["ended"] = "ended"
    lane: int
    state: Literal["done", "stopped", "failed"]
    reason: str
    """`end` when the model ended its text, `length` at the limit of tokens, else a sentence."""


class Alive(Message):
    """Nothing is new, and the worker lives."""

    kind: Literal["alive"] = "alive"


class Finished(Message):
    """All lanes have ended; nothing follows."""

    kind: Literal["finished"] = "finished"


Answer = Annotated[Queued | Loading | Started | TextUpdate | Ended | Alive | Finished, Field(discriminator="kind")]
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def explain(error: dict[str, Any]) -> str:
    """One sentence about one of pydantic's validation errors."""
    where = str(error["loc"][-1]) if error["loc"] else "The request"
    return f"{where}: {str(error['msg']).removeprefix('Value error, ').rstrip('.')}."
