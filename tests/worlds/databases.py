"""Throwaway PostgreSQL servers, where PostgreSQL is installed."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

DEBIAN = Path("/usr/lib/postgresql")


def postgres_programs() -> Path | None:
    """Folder of `initdb` and `postgres`, if they are on this machine."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    return max(DEBIAN.glob("*/bin"), default=None) if DEBIAN.is_dir() else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """A server on a Unix socket in a temporary folder; yields the address without a database."""
    programs = postgres_programs()
    assert programs is not None, "ask postgres_programs() first"
    # PostgreSQL refuses to run as root; a short path because sockets allow 107 bytes.
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="crossdiff-pg-", dir="/tmp"))
    if user is not None:
        shutil.chown(folder, user)
    subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"],
        user=user, cwd=folder, env={"LC_ALL": "C.UTF-8", "PATH": os.defpath}, check=True, capture_output=True,
    )  # fmt: skip
    command = [programs / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F", "-c", "max_connections=40"]
    server = subprocess.Popen(
        command, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": os.defpath}
    )
    try:
        _wait(server, folder)
        yield f"postgresql://tester@/{{database}}?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def new_database(address: str) -> str:
    """A new empty database on that server."""
    name = f"labels_{secrets.token_hex(4)}"
    with psycopg.connect(address.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    return address.format(database=name)


def _wait(server: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until the server responds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"postgresql://tester@/postgres?host={folder}").close()
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL ended by itself"
            assert time.monotonic() < deadline, "PostgreSQL did not answer within 30 seconds"
            time.sleep(0.1)
        else:
            return
