"""What every test stands on: fixed seeds, no network, no settings of the developer's, and honest skips."""

import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

# Before torch is imported anywhere: tests are tiny, and threads would only fight over the cores. Some tests fork, and
# OpenMP's threads do not come along.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The developer's own settings are none of a test's business.
for name in [name for name in os.environ if name.startswith("CROSSDIFF_") and not name.startswith("CROSSDIFF_TEST_")]:
    del os.environ[name]

# What is started in the background inherits that Ctrl-C is ignored, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An explorer answers under the names of this machine alone.
TestClient.__init__ = functools.partialmethod(TestClient.__init__, base_url="http://localhost")  # type: ignore[method-assign,assignment]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Path of a Chromium on this machine, if there is one."""
    return next((path for name in CHROMIUMS if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, each with its reason."""
    reasons = {
        "gpu": None if _has_gpu(items) else "needs CUDA",
        "browser": None if chromium() else "needs Chromium (Debian: apt install chromium)",
        "network": None if os.environ.get("CROSSDIFF_TEST_NETWORK") else "set CROSSDIFF_TEST_NETWORK=1 to run it",
        "models": None if _models_folder().is_dir() else f"needs the demo's models in {_models_folder()}: make demo",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where the demo's models lie, for tests marked `models`."""
    return _models_folder()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The Chromium to drive, for tests marked `browser`."""
    path = chromium()
    assert path is not None, "mark this test with pytest.mark.browser"
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CROSSDIFF_HOME for every test."""
    home = tmp_path / "crossdiff-home"
    monkeypatch.setenv("CROSSDIFF_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers whatever ran before; libraries that are not loaded stay unloaded."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections beyond this machine, except in tests marked `network`."""
    if request.node.get_closest_marker("network") is not None:
        return
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            pytest.fail(f"A test tried to reach {address[0]}; mark it with pytest.mark.network if it must.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


def _models_folder() -> Path:
    return Path(os.environ.get("CROSSDIFF_TEST_MODELS") or Path(__file__).parents[1] / "data" / "models").absolute()


def _has_gpu(items: list[pytest.Item]) -> bool:
    """Whether CUDA is there; torch is imported only when some test asks."""
    if not any(item.get_closest_marker("gpu") for item in items) or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
