"""GGUF: quantized models in one file, unpacked once into an ordinary bf16 model folder.

transformers reads GGUF, but slowly, and refuses to save what it read. So the model is rebuilt from its
config and weights without a trace of quantization, and later loads take seconds.
"""

import contextlib
import hashlib
import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from trainer.errors import SourceError
from trainer.run.folder import discard, home, published, write_json

CONVERSION = 1
"""Raised when the conversion below changes, so that folders it wrote before are written anew."""

UNREADABLE = (ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError, OSError, struct.error)
"""What the readers of GGUF raise over a file that is damaged or that they do not know."""

SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Styles of pre-tokenization (`tokenizer.ggml.pre`) that split every digit off before GPT-2's pattern."""


def unpacked(gguf: Path) -> Path:
    """The model folder of a GGUF file: config, bf16 safetensors and tokenizer, written the first time.

    The folder lies under `models/` in the home folder and its name ends in eight digits of the file's
    SHA-256. Raises SourceError for a file that is not GGUF or holds an architecture unknown here; DiskFull.
    """
    if not gguf.is_file():
        raise SourceError(f"No GGUF file at {gguf}. Give the path of a file that exists.")
    fingerprint = sha256(gguf)
    folder = home() / "models" / f"{gguf.stem}-{fingerprint[:8]}"
    if _is_current(folder):
        return folder
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SourceError(f"{gguf} is not a GGUF file, or is damaged: it does not begin with GGUF. Get it again.")
    tqdm.write(
        f"Unpacking {gguf.name} into a bf16 model. This is done once and takes up to a minute …", file=sys.stderr
    )
    with quiet():
        model = _model(gguf)
        tokenizer = _tokenizer(gguf, model)
    discard(folder)
    with published(folder) as draft, quiet():
        draft.mkdir()
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        write_json(draft / "origin.json", {"conversion": CONVERSION, "file": gguf.name, "sha256": fingerprint})
    return folder


def origin(folder: Path) -> str | None:
    """SHA-256 of the GGUF file a model folder was unpacked from, or None for any other folder."""
    try:
        return str(json.loads((folder / "origin.json").read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries say while loading: advice, and progress bars where there is no terminal."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with bars:
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_room(gguf: Path) -> None:
    """Raise SourceError when unpacking would not fit into memory: four bits become sixteen, twice for a while."""
    needed, free = 8 * gguf.stat().st_size + 2**30, psutil.virtual_memory().available
    if needed > free:
        raise SourceError(
            f"Unpacking {gguf.name} needs about {needed / 2**30:.1f} GiB of memory and only {free / 2**30:.1f} GiB are "
            "free. Close other programs, choose a smaller model, or give the original as a folder or hub id."
        )


def _is_current(folder: Path) -> bool:
    """Whether a folder was written by this version of the conversion."""
    try:
        return bool(json.loads((folder / "origin.json").read_text(encoding="utf-8"))["conversion"] == CONVERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _model(gguf: Path) -> PreTrainedModel:
    """The model as if it had never been quantized, in bf16, with its embeddings tied if they were."""
    try:
        # bf16 at once: a model read as fp32 would need twice the memory for nothing.
        read, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True
        )
    except UNREADABLE as error:
        raise SourceError(
            f"{gguf.name} cannot be read as a model: {error}. Get the file again if it is damaged; "
            "else give the original model as a folder or hub id."
        ) from error
    if report["missing_keys"]:
        raise SourceError(
            f"{gguf.name} lacks weights of its model, such as {min(report['missing_keys'])}. Get the file again, "
            "or give the original model as a folder or hub id."
        )
    config = read.config
    config.name_or_path = ""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain: PreTrainedModel = type(read)(config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _tokenizer(gguf: Path, model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a GGUF file, with its special tokens and chat template.

    It is wrapped in the plain class, which reads tokenizer.json as it stands; the class of a model
    family would put its own pieces in place of those that the file describes.
    """
    try:
        read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except UNREADABLE as error:
        raise SourceError(
            f"{gguf.name} has no tokenizer that can be read: {error}. Give the original model as a folder or hub id."
        ) from error
    backend: Tokenizer = read.backend_tokenizer
    style = _pre_tokenization(gguf)
    if style in SINGLE_DIGITS:
        # transformers takes GPT-2's pattern for these, which joins digits: "2024" would become tokens
        # that the model has hardly seen.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special: dict[str, Any] = {name: getattr(read, name) for name in names if getattr(read, name, None) is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model.config.max_position_embeddings,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def _pre_tokenization(gguf: Path) -> str:
    """The name of a byte-level tokenizer's splitting style, as GGUF spells it; empty for other tokenizers."""
    from transformers.integrations.gguf import get_gguf_tokenizer

    _, described, _ = get_gguf_tokenizer(str(gguf))
    return str(described.get("pre_tokenizer_type", "")) if described.get("tokenizer_type") == "gpt2" else ""
