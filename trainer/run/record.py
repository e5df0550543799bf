"""Records which stages are finished: the fingerprint of what each read, and checksums of what it wrote."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.run.checksum import known_sha256
from trainer.run.folder import RunFolder, read_json, write_json


@dataclass(frozen=True)
class FinishedStage:
    """One finished stage."""

    inputs: str
    """Fingerprint of everything the stage read."""
    products: dict[str, str] | None
    """SHA-256 by name of the files it wrote; None in records that say nothing about them."""


def read_record(folder: RunFolder) -> dict[str, FinishedStage]:
    """The finished stages by name; a damaged record, or a damaged entry, counts as none."""
    entries = read_json(folder.stages)
    if not isinstance(entries, dict):
        return {}
    return {str(stage): found for stage, entry in entries.items() if (found := _finished_stage(entry)) is not None}


def record_finished(folder: RunFolder, stage: str, inputs: str, products: Iterable[Path]) -> None:
    """Record that a stage is finished, with the checksums of its products."""
    finished = FinishedStage(inputs, {path.name: known_sha256(path) for path in products})
    entries = {name: asdict(entry) for name, entry in read_record(folder).items()}
    write_json(folder.stages, entries | {stage: asdict(finished)})


def damaged_product(finished: FinishedStage, products: Iterable[Path]) -> Path | None:
    """The first product that is missing or is not what the stage wrote; None if all are healthy."""
    for path in products:
        if not path.is_file():
            return path
        if finished.products is not None and finished.products.get(path.name) != known_sha256(path):
            return path
    return None


def _finished_stage(entry: object) -> FinishedStage | None:
    """An entry of the record; those of earlier versions are the fingerprint alone."""
    match entry:
        case str(inputs):
            return FinishedStage(inputs, None)
        case {"inputs": str(inputs), "products": None | dict() as products}:
            return FinishedStage(inputs, products)
        case _:
            return None
