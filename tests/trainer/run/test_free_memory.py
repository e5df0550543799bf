"""Memory that a container may use is less than what the machine has."""

import psutil
import pytest

from trainer.run import free_memory as module
from trainer.run.free_memory import free_memory, total_memory

MB = 2**20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files of control groups; returns a function that takes the process's groups and the files."""

    def write(membership, files):
        monkeypatch.setattr(module, "GROUPS", tmp_path)
        monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "membership")
        (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return write


@pytest.mark.parametrize(
    ("membership", "files", "free", "total"),
    [
        (
            "0::/\n",
            {"memory.max": f"{512 * MB}\n", "memory.current": f"{200 * MB}\n", "memory.stat": "inactive_file 0\n"},
            312,
            512,
        ),
        (
            "0::/outer/inner\n",
            {
                "outer/memory.max": f"{300 * MB}",
                "outer/memory.current": f"{290 * MB}",
                "outer/memory.stat": f"anon 1\ninactive_file {90 * MB}\n",
                "outer/inner/memory.max": "max",
                "outer/inner/memory.current": "5",
            },
            100,
            300,
        ),
        (
            "3:cpu,memory:/job\n1:name=systemd:/job\n",
            {
                "memory/job/memory.limit_in_bytes": f"{64 * MB}",
                "memory/job/memory.usage_in_bytes": f"{60 * MB}",
                "memory/job/memory.stat": f"total_inactive_file {MB}\n",
            },
            5,
            64,
        ),
        # In a container the path is the host's, and only the group's own files are there, at the root.
        ("0::/host/docker/abc\n", {"memory.max": f"{128 * MB}", "memory.current": "0"}, 128, 128),
        ("0::/\n", {"memory.max": f"{128 * MB}", "memory.current": f"{200 * MB}"}, 0, 128),
    ],
)
def test_the_smallest_limit_counts(machine, membership, files, free, total):
    machine(membership, files)

    assert free_memory() == free * MB
    assert total_memory() == total * MB


@pytest.mark.parametrize(
    ("membership", "files"),
    [("", {}), ("0::/\n", {"memory.max": "max\n", "memory.current": "1\n"}), ("0::/gone\n", {})],
)
def test_without_a_limit_the_machine_counts(machine, membership, files):
    machine(membership, files)

    assert total_memory() == psutil.virtual_memory().total
    assert 0 < free_memory() <= total_memory()
