"""Reads and writes aligned activations of all sources on disk, in shards.

The format is documented, so that other programs can write a store: `manifest.json`, safetensors shards with one
tensor per source, and optionally `sequences.parquet` with the texts. A store is validated when it is opened.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import StoreError
from trainer.run.checksum import known_sha256, remember_sha256, sha256_of
from trainer.run.folder import atomic_write, write_json

FORMAT, VERSION = "crossdiff.activations", 3
LOCATION_TENSORS = ("sequence", "position", "byte_end")
"""Tensors with the location of each row in the text; absent in stores without texts."""
MAPPED_BYTES = 2**28
"""Bytes read of a shard before it is mapped again: the pages of a mapping count as memory until it is closed."""
DTYPES = ("bfloat16", "float16", "float32")
SPLITS = ("train", "held_out")

Rows = dict[str, Tensor]
"""Activations by source name, each [rows, width of the source]."""
Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class StoredSource:
    """A source as described in the manifest."""

    name: str
    width: int
    dtype: str = "bfloat16"
    model: str = ""
    revision: str | None = None
    hookpoint: str = ""


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    file: str
    rows: int
    sha256: str
    split: Split = "train"


@dataclass(frozen=True)
class Manifest:
    """Contents of the store."""

    sources: tuple[StoredSource, ...]
    shards: tuple[Shard, ...]
    sequences: str | None = None
    """Name of the file with the sequences' texts and tokens, if any."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """Counts of the harvest: coverage per corpus part and source, and dropped rows by reason."""
    sequences_sha256: str | None = None
    """SHA-256 of the file with the sequences, if it is known."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fingerprints of the models and texts that were read (`trainer.reading.inputs`); empty if they are unknown."""

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)


class RowBlock(NamedTuple):
    """Consecutive rows in stored order, with their locations if the store has texts."""

    rows: Rows
    sequence: Tensor | None
    position: Tensor | None
    byte_end: Tensor | None


class ActivationStore:
    """An open store, read-only."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> "ActivationStore":
        """Read the manifest and check that every shard exists and has the shapes given there.

        Raises StoreError with what is missing or wrong. `verify` checks checksums and values.
        """
        store = cls(path, _read_manifest(path / "manifest.json"))
        for shard in store.manifest.shards:
            store._check_shapes(shard)
        sequences = store.manifest.sequences
        if sequences is not None and not (path / sequences).is_file():
            raise StoreError(f"{path}: {sequences} is missing. Copy it beside the manifest, or harvest again.")
        return store

    @property
    def sources(self) -> tuple[StoredSource, ...]:
        """The sources in order."""
        return self.manifest.sources

    @property
    def widths(self) -> dict[str, int]:
        """Width of each source by name."""
        return {source.name: source.width for source in self.sources}

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row's activations."""
        return sum(source.width * getattr(torch, source.dtype).itemsize for source in self.sources)

    def count(self, split: Split) -> int:
        """Number of rows in a split."""
        return sum(shard.rows for shard in self.shards(split))

    def shards(self, split: Split | None) -> tuple[Shard, ...]:
        """Shards of a split, or all."""
        return tuple(shard for shard in self.manifest.shards if split in (None, shard.split))

    def read(self, shard: Shard) -> RowBlock:
        """One shard, memory-mapped."""
        with safe_open(self.path / shard.file, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        rows = {source.name: tensors[source.name] for source in self.sources}
        if "sequence" not in tensors and "document" in tensors:  # version 1
            tensors["sequence"] = tensors["document"]
        return RowBlock(rows, *(tensors.get(name) for name in LOCATION_TENSORS))

    def blocks(self, split: Split | None = None, *, rows: int = 8192) -> Iterator[RowBlock]:
        """Yield all rows of a split in stored order, in blocks of at most `rows` that do not cross shards."""
        for shard in self.shards(split):
            yield from self._shard_blocks(shard, rows)

    def rows_from(self, split: Split, first: int, count: int) -> Rows:
        """Copies of up to `count` rows of a split from row `first` on, fewer at the end of a shard."""
        for shard in self.shards(split):
            if first < shard.rows:
                return {name: x[first : first + count].clone() for name, x in self.read(shard).rows.items()}
            first -= shard.rows
        raise IndexError(f"{self.path} has no such row")

    def _shard_blocks(self, shard: Shard, rows: int) -> Iterator[RowBlock]:
        rows_per_mapping = max(MAPPED_BYTES // self.bytes_per_row // rows, 1) * rows
        for first in range(0, shard.rows, rows):
            if first % rows_per_mapping == 0:  # closes the previous mapping, which frees its pages
                whole = self.read(shard)
            part = slice(first, min(first + rows, shard.rows))
            locations = (None if location is None else location[part] for location in whole[1:])
            yield RowBlock({name: tensor[part] for name, tensor in whole.rows.items()}, *locations)

    def sequences(self, only: list[int] | None = None, *, columns: list[str] | None = None) -> pa.Table | None:
        """Table of the sequences, or None in a store without texts; `only` selects by number, `columns` by name."""
        if self.manifest.sequences is None:
            return None
        old_names = self._old_names()
        wanted = None if only is None else [(old_names.get("sequence", "sequence"), "in", only)]
        old_columns = None if columns is None else [old_names.get(name, name) for name in columns]
        table = pq.read_table(self.path / self.manifest.sequences, columns=old_columns, filters=wanted)
        new_names = {old: name for name, old in old_names.items()}
        return table.rename_columns([new_names.get(name, name) for name in table.column_names])

    def document_groups(self) -> np.ndarray | None:
        """Of every sequence, the number of its group of documents that are not independent, int64 [sequences].

        A store that does not tell groups, such as one of version 2, has one for every document; None without documents.
        """
        known = self.sequence_columns()
        column = next((name for name in ("document_group", "document") if name in known), None)
        table = None if column is None else self.sequences(columns=[column])
        return None if table is None else np.array(table[column].to_numpy(), np.int64)

    def held_out_rows(self) -> np.ndarray:
        """Whether each row, in stored order, is held out from training, bool [rows]."""
        shards = self.manifest.shards
        return np.repeat([shard.split == "held_out" for shard in shards], [shard.rows for shard in shards])

    def sequence_columns(self) -> set[str]:
        """Columns of the table of sequences; empty in a store without texts."""
        if self.manifest.sequences is None:
            return set()
        new_names = {old: name for name, old in self._old_names().items()}
        return {new_names.get(name, name) for name in pq.read_schema(self.path / self.manifest.sequences).names}

    def _old_names(self) -> dict[str, str]:
        """Version 1 column names by their current name; empty for a file of version 2."""
        assert self.manifest.sequences is not None, "only for stores with texts"
        names = pq.read_schema(self.path / self.manifest.sequences).names
        return {} if "sequence" in names else {"sequence": "document", "document": "origin"}

    def identity(self) -> str:
        """Hash of the stored content, 16 hex digits; the same wherever the store lies."""
        sources = [(source.name, source.width, source.dtype) for source in self.sources]
        shards = [(shard.sha256, shard.rows, shard.split) for shard in self.manifest.shards]
        texts = None if self.manifest.sequences is None else known_sha256(self.path / self.manifest.sequences)
        return hashlib.sha256(json.dumps([sources, shards, texts]).encode()).hexdigest()[:16]

    def check_files(self) -> None:
        """Raise StoreError if a file is not the one that the manifest describes; unchanged files are read once."""
        sums = {shard.file: shard.sha256 for shard in self.manifest.shards}
        if self.manifest.sequences is not None and self.manifest.sequences_sha256 is not None:
            sums[self.manifest.sequences] = self.manifest.sequences_sha256
        for name, sha256 in sums.items():
            if known_sha256(self.path / name) != sha256:
                raise StoreError(
                    f"{self.path / name}: checksum differs from the manifest. Copy the file again, or harvest again."
                )

    def verify(self) -> None:
        """Read everything once. Raises StoreError if a checksum differs or a value is NaN or infinite."""
        for shard in self.manifest.shards:
            if sha256_of(self.path / shard.file) != shard.sha256:
                raise StoreError(f"{self.path / shard.file}: checksum differs from the manifest. Copy the file again.")
            invalid = dict.fromkeys(self.widths, 0)
            for block in self._shard_blocks(shard, 8192):
                for name, tensor in block.rows.items():
                    invalid[name] += int((~torch.isfinite(tensor)).any(dim=1).sum())
            for name in filter(invalid.get, invalid):
                raise StoreError(
                    f"{self.path / shard.file}: {invalid[name]} of {shard.rows} rows of {name!r} are NaN or infinite. "
                    "Harvest them again in bfloat16 or float32 (float16 overflows in some models)."
                )

    def _check_shapes(self, shard: Shard) -> None:
        path = self.path / shard.file
        if not path.is_file():
            raise StoreError(f"{path} is missing, but the manifest lists it. Copy it there or harvest again.")
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
        except (SafetensorError, OSError) as error:
            raise StoreError(
                f"{path} is not a complete safetensors file ({error}). Copy or harvest it again."
            ) from None
        for source in self.sources:
            wanted = (shard.rows, source.width)
            if source.name not in shapes:
                raise StoreError(f"{path} has no tensor {source.name!r}; it holds {', '.join(sorted(shapes))}.")
            if shapes[source.name] != wanted:
                raise StoreError(f"{path}: {source.name!r} has shape {shapes[source.name]}, expected {wanted}.")


class StoreWriter:
    """Writes a store shard by shard. The manifest is written last, so a store without one is incomplete."""

    def __init__(self, path: Path, sources: tuple[StoredSource, ...], shards: tuple[Shard, ...] = ()) -> None:
        """Start a store, or continue after the `shards` that an interrupted run has written."""
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._sources = path, sources
        self.shards = list(shards)

    def rows(self, split: Split) -> int:
        """Number of rows written so far in a split."""
        return sum(shard.rows for shard in self.shards if shard.split == split)

    def add(self, rows: Rows, locations: dict[str, Tensor], split: Split) -> Shard | None:
        """Write one shard: activations per source [rows, width], and locations (int32 [rows]) if there are texts.

        Returns None and writes nothing if there are no rows.
        """
        count = len(next(iter(rows.values())))
        if not count:
            return None
        file = f"shard-{len(self.shards):05d}.safetensors"
        with atomic_write(self._path / file) as draft:
            save_file({name: tensor.contiguous() for name, tensor in (rows | locations).items()}, draft)
        shard = Shard(file, count, sha256_of(self._path / file), split)
        remember_sha256(self._path / file, shard.sha256)
        self.shards.append(shard)
        return shard

    def finish(
        self, sequences: pa.Table | None, statistics: dict[str, Any], inputs: dict[str, dict[str, Any]] | None = None
    ) -> Manifest:
        """Write the table of sequences, if any, and the manifest."""
        name = sha256 = None
        if sequences is not None:
            name = "sequences.parquet"
            with atomic_write(self._path / name) as draft:
                pq.write_table(sequences, draft, compression="zstd")
            sha256 = sha256_of(self._path / name)
        manifest = Manifest(self._sources, tuple(self.shards), name, statistics, sha256, inputs or {})
        write_json(self._path / "manifest.json", _to_json(manifest))
        return manifest


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "rows": manifest.rows, **asdict(manifest)}


def _read_manifest(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"No activation store at {path.parent}: {path.name} is missing. Harvest it first.") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not readable JSON ({error}). Copy or harvest the store again.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") not in range(1, VERSION + 1):
        found = f"{data.get('format')!r} version {data.get('version')!r}" if isinstance(data, dict) else "no manifest"
        raise StoreError(f"{path} is {found}; this Crossdiff reads {FORMAT!r} versions 1 to {VERSION}.")
    try:
        manifest = _parse_manifest(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        fact = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged or malformed ({error})"
        raise StoreError(
            f"{path} {fact}. Copy or harvest the store again; docs/formats.md describes the format."
        ) from None
    if not manifest.sources or not manifest.shards:
        raise StoreError(
            f"{path} lists {len(manifest.sources)} sources and {len(manifest.shards)} shards; "
            "it needs at least one of each."
        )
    return manifest


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    """The manifest in plain data. Raises KeyError, TypeError, AttributeError or ValueError where it is malformed."""
    sources = tuple(StoredSource(**_known_fields(StoredSource, source)) for source in data["sources"])
    shards = tuple(Shard(**_known_fields(Shard, shard)) for shard in data["shards"])
    for source in sources:
        _require(source.dtype in DTYPES, f"{source.name!r} has dtype {source.dtype!r}; known are {', '.join(DTYPES)}")
        _require(_is_count(source.width) and source.width > 0, f"{source.name!r} has width {source.width!r}")
    _require(len({source.name for source in sources}) == len(sources), "two sources have the same name")
    for shard in shards:
        _require(_is_file_name(shard.file), f"a shard's file is {shard.file!r}, which is no name of a file beside it")
        _require(_is_count(shard.rows), f"{shard.file} has {shard.rows!r} rows")
        _require(shard.split in SPLITS, f"{shard.file} has split {shard.split!r}; known are {', '.join(SPLITS)}")
    sequences = data.get("documents" if data["version"] == 1 else "sequences")
    _require(sequences is None or _is_file_name(sequences), f"the file of the sequences is {sequences!r}")
    statistics, inputs = data.get("statistics", {}), data.get("inputs", {})
    _require(isinstance(statistics, dict) and isinstance(inputs, dict), "statistics and inputs are no mappings")
    return Manifest(sources, shards, sequences, statistics, data.get("sequences_sha256"), inputs)


def _require(condition: bool, fact: str) -> None:
    if not condition:
        raise ValueError(fact)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and Path(value).name == value != ""


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The entries that are fields of a dataclass; other programs may add keys of their own."""
    return {key: value for key, value in values.items() if key in cls.__dataclass_fields__}  # type: ignore[attr-defined]
