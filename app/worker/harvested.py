"""Which content of each model a run's activations were harvested from, according to its activation store."""

import json
import re
from pathlib import Path

from trainer.run.folder import RunFolder

REVISION = re.compile(r"([0-9a-f]{12}|[0-9a-f]{40})(\+.*)?")
"""A commit on the hub or a fingerprint of files, with that of an adapter; other programs may store other things."""


def harvested_revisions(folder: RunFolder) -> dict[str, str]:
    """Revision of each source's model by the source's name, as `Source.revision` gives it; those not known are absent.

    Stores may be deleted when a run is finished, and stores of other programs may say nothing.
    """
    try:
        store = Path(json.loads(folder.store.read_text(encoding="utf-8"))["path"])
        sources = json.loads((store / "manifest.json").read_text(encoding="utf-8"))["sources"]
        return {
            source["name"]: source["revision"] for source in sources if REVISION.fullmatch(source.get("revision") or "")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
