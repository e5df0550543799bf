"""Says why a library could not load a model: an unsupported kind, a missing package, or a damaged file."""

import pickle

from safetensors import SafetensorError

from trainer.errors import SourceError

LOADING_ERRORS = (
    ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, EOFError, SafetensorError,
    pickle.UnpicklingError,
)  # fmt: skip
"""Errors that transformers and PEFT raise for files they cannot use."""

QUANTIZED = "Install what it needs, or give the model that was quantized."
MISFIT = "Check that its config.json and its weights belong together, or choose another model."


def first_line(error: BaseException) -> str:
    """First line of a library's error message that says something, without its full stop or colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch begins a list of problems with a headline that names none.
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def runs_own_code(error: BaseException) -> bool:
    """Whether transformers asks for permission to run code that lies beside the model."""
    return "trust_remote_code" in str(error)


def refusal(name: str, model: str, error: BaseException, *, quantized: str | None = None) -> SourceError:
    """What to raise instead of a library's error; `quantized` names the method of a quantized folder."""
    if runs_own_code(error):
        return SourceError(
            f"{name}: {model} brings code of its own, which is never run. Choose a model that transformers supports, "
            "or install a transformers that has its architecture."
        )
    reason = first_line(error)
    if quantized is not None:
        problem, remedy = f"is quantized with {quantized} and cannot be loaded so here: {reason}", QUANTIZED
    elif isinstance(error, ImportError):
        problem, remedy = f"needs a package that is not installed: {reason}", "Install it."
    elif isinstance(error, pickle.UnpicklingError):
        problem = "has its weights in a pickle that is damaged or holds more than tensors, and is not read"
        remedy = "Give the model as safetensors."
    elif isinstance(error, SafetensorError | EOFError) or "PytorchStreamReader" in reason:
        problem, remedy = f"has a damaged weight file: {reason}", "Download it again."
    elif isinstance(error, OSError) and "no file named" in reason:
        problem, remedy = "holds no weights", "Give a folder with config.json and .safetensors files."
    elif isinstance(error, FileNotFoundError):
        problem, remedy = f"lacks a file: {reason}", "Download it again."
    elif isinstance(error, OSError):
        problem, remedy = f"has a file that cannot be read: {reason}", "Download it again."
    else:
        problem, remedy = f"cannot be loaded by transformers: {reason}", MISFIT
    return SourceError(f"{name}: {model} {problem}. {remedy}")
