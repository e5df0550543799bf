"""Settings that the explorer reads from CROSSDIFF_* environment variables at start."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import BadSetting

REPOSITORY = Path(__file__).resolve().parents[1]
"""The checkout that the app runs from; it also contains templates and static files."""


@dataclass(frozen=True)
class Settings:
    """Where data is stored and where the explorer listens."""

    home: Path = field(default_factory=lambda: Path("data").absolute())
    """Folder with runs, models and the labels database."""
    database_url: str | None = None
    """Labels database; SQLite in the home folder when absent."""
    worker_url: str | None = None
    """Inference worker; a local one is started when absent."""
    worker_token: str | None = field(default=None, repr=False)
    """Secret shared with that worker."""
    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    """Further names under which browsers reach it, such as that of a reverse proxy; loopback names, addresses, and
    the name it listens on are known."""
    root_path: str = ""
    """Prefix that a reverse proxy strips from addresses, such as `/crossdiff`; no slash at its end."""
    frontend: Path = REPOSITORY / "frontend"
    """Folder with templates, static files and node_modules."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Settings from CROSSDIFF_* variables, with defaults for those that are absent or empty.

        Raises BadSetting for an invalid port or token, or a home of nobody.
        """
        return cls(
            home=_folder(environment.get("CROSSDIFF_HOME") or "data"),
            database_url=environment.get("CROSSDIFF_DATABASE_URL") or None,
            worker_url=environment.get("CROSSDIFF_WORKER_URL") or None,
            worker_token=worker_token(environment),
            host=environment.get("CROSSDIFF_HOST") or "127.0.0.1",
            port=_port(environment.get("CROSSDIFF_PORT") or "8000"),
            hosts=tuple(environment.get("CROSSDIFF_HOSTS", "").replace(",", " ").split()),
            root_path=(environment.get("CROSSDIFF_ROOT_PATH") or "").rstrip("/"),
        )

    @property
    def beyond_loopback(self) -> bool:
        """Whether other machines can reach it."""
        if is_address(self.host):
            return not ipaddress.ip_address(self.host).is_loopback
        return self.host != "localhost"

    @property
    def runs(self) -> Path:
        """Folder with one folder per run."""
        return self.home / "runs"


def worker_token(environment: Mapping[str, str]) -> str | None:
    """The secret that explorer and worker share, without white space around it; None when there is none.

    Raises BadSetting when a header of HTTP cannot carry it.
    """
    token = (environment.get("CROSSDIFF_WORKER_TOKEN") or "").strip()
    if not all(character.isprintable() or ord(character) > 127 for character in token):
        fact = "CROSSDIFF_WORKER_TOKEN holds a control character, such as a line end."
        raise BadSetting(fact, remedy="Give the explorer and the worker the same token in one line.")
    return token or None


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadSetting(f"CROSSDIFF_HOME is {text}, and there is no such user.", remedy="Give a whole path.") from None


def is_address(host: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise BadSetting(f"CROSSDIFF_PORT is {text!r}, which is not a port.", remedy="Give a number from 1 to 65535.")
    return int(text)
