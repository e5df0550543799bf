"""Unpacks a quantized GGUF file once into an ordinary bf16 model folder.

transformers reads GGUF slowly and refuses to save the result. The model is therefore rebuilt from its config and its
dequantized weights, so that later loads take seconds.
"""

import contextlib
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
from trainer.run.checksum import sha256_of
from trainer.run.folder import atomic_write, discard, home, write_json

CONVERSION_VERSION = 1
"""Incremented when the conversion changes; folders of an earlier version are then written again."""

READ_ERRORS = (ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError, OSError, struct.error)
"""Errors that the GGUF readers raise for a damaged file or an unknown architecture."""

SINGLE_DIGIT_STYLES = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Pre-tokenizers (`tokenizer.ggml.pre`) that split off every single digit before GPT-2's pattern."""


def unpack(gguf: Path) -> Path:
    """The model folder of a GGUF file: config, bf16 safetensors and tokenizer, written on the first call.

    The folder is under `models/` in the home folder, and its name ends in eight digits of the file's SHA-256. Raises
    SourceError for a file that is not GGUF, has an unsupported architecture or does not fit into memory; DiskFull.
    """
    if not gguf.is_file():
        raise SourceError(f"No GGUF file at {gguf}. Give the path of a file that exists.")
    fingerprint = sha256_of(gguf)
    folder = home() / "models" / f"{gguf.stem}-{fingerprint[:8]}"
    if _is_current(folder):
        return folder
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SourceError(
                f"{gguf} is not a GGUF file, or is damaged: it does not begin with GGUF. Download it again."
            )
    check_memory(gguf)
    tqdm.write(
        f"Unpacking {gguf.name} into a bf16 model. This is done once and takes up to a minute …", file=sys.stderr
    )
    with silence_libraries():
        model = _dequantized_model(gguf)
        tokenizer = _load_tokenizer(gguf, model)
    discard(folder)
    with atomic_write(folder) as draft, silence_libraries():
        draft.mkdir()
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        write_json(draft / "origin.json", {"conversion": CONVERSION_VERSION, "file": gguf.name, "sha256": fingerprint})
    return folder


def gguf_sha256(folder: Path) -> str | None:
    """SHA-256 of the GGUF file that a model folder was unpacked from; None for any other folder."""
    try:
        return str(json.loads((folder / "origin.json").read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Suppress the log messages of transformers, and its progress bars if stderr is not a terminal."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hide_bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with hide_bars:
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_memory(gguf: Path) -> None:
    """Raise SourceError if unpacking would not fit into memory: 4 bits become 16, and two copies exist for a while."""
    needed, free = 8 * gguf.stat().st_size + 2**30, psutil.virtual_memory().available
    if needed > free:
        raise SourceError(
            f"Unpacking {gguf.name} needs about {needed / 2**30:.1f} GiB of memory and only {free / 2**30:.1f} GiB are "
            "free. Close other programs, choose a smaller model, or give the original as a folder or hub id."
        )


def _is_current(folder: Path) -> bool:
    """Whether a folder was written by the current version of the conversion."""
    try:
        return bool(
            json.loads((folder / "origin.json").read_text(encoding="utf-8"))["conversion"] == CONVERSION_VERSION
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _dequantized_model(gguf: Path) -> PreTrainedModel:
    """The model dequantized to bf16, with its embeddings tied if the original's are."""
    try:
        # Loaded as bf16: fp32 would need twice the memory and add nothing.
        loaded, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except READ_ERRORS as error:
        raise SourceError(
            f"{gguf.name} cannot be read as a model: {error}. Download the file again if it is damaged; "
            "else give the original model as a folder or hub id."
        ) from error
    if report["missing_keys"]:
        raise SourceError(
            f"{gguf.name} lacks weights of its model, such as {min(report['missing_keys'])}. Download the file again, "
            "or give the original model as a folder or hub id."
        )
    config = loaded.config
    config.name_or_path = ""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        dequantized: PreTrainedModel = type(loaded)(config)
    dequantized.load_state_dict(loaded.state_dict(), assign=True)
    dequantized.tie_weights()
    return dequantized


def _load_tokenizer(gguf: Path, model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a GGUF file, with its special tokens and chat template.

    It is wrapped in the generic class, which uses tokenizer.json unchanged; the class of a model family would replace
    components that the file describes.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    except READ_ERRORS as error:
        raise SourceError(
            f"{gguf.name} has no tokenizer that can be read: {error}. Give the original model as a folder or hub id."
        ) from error
    backend: Tokenizer = loaded.backend_tokenizer
    style = _pre_tokenization(gguf)
    if style in SINGLE_DIGIT_STYLES:
        # transformers uses GPT-2's pattern here, which joins digits: "2024" would become tokens that the model has
        # hardly seen in training.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special: dict[str, Any] = {name: getattr(loaded, name) for name in names if getattr(loaded, name, None) is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model.config.max_position_embeddings,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = loaded.chat_template
    return tokenizer


def _pre_tokenization(gguf: Path) -> str:
    """GGUF's name of a byte-level tokenizer's pre-tokenizer; empty for other tokenizers."""
    from transformers.integrations.gguf import get_gguf_tokenizer

    _, parsed, _ = get_gguf_tokenizer(str(gguf))
    return str(parsed.get("pre_tokenizer_type", "")) if parsed.get("tokenizer_type") == "gpt2" else ""
