"""Chooses the inference worker: the one that the settings name, or one that this process starts itself."""

from app.inference.client import Address, Client, RemoteWorker
from app.inference.supervisor import Supervisor
from app.settings import Settings


def connect(settings: Settings) -> tuple[Client, Supervisor | None]:
    """A client, and the supervisor of the local worker if there is to be one; nothing is started yet."""
    if settings.worker_url is None:
        supervisor = Supervisor(settings.home)
        return Client(supervisor), supervisor
    return Client(RemoteWorker(_address(settings.worker_url, settings.worker_token))), None


def _address(url: str, token: str | None) -> Address:
    if url.startswith("unix:"):
        return Address(socket="/" + url.removeprefix("unix:").lstrip("/"), token=token)
    return Address(url=url.rstrip("/"), token=token)
