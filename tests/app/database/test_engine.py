"""The labels database: its schema over time, and transactions that last."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy import Engine

from app.database.engine import LabelsUnusable, alembic_config, head, migrate, open_database, transaction
from app.labels.store import LabelTarget, history, save_label
from app.settings import REPOSITORY

TARGET = LabelTarget("pair-0123abcd", 7, "f00d")


def at_revision(url: str, revision: str, *, down: bool = False) -> None:
    """Move the schema up or down."""
    engine = open_database(url, foreign_keys=False)
    with engine.begin() as connection:
        (command.downgrade if down else command.upgrade)(alembic_config(connection), revision)
    engine.dispose()


def tables(url: str) -> list[str]:
    """Names of the tables there are."""
    engine = open_database(url)
    names = sorted(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_tables_and_migrations_agree(labels: Engine):
    with labels.begin() as connection:
        command.check(alembic_config(connection))  # raises when a table changed without a migration


def test_a_second_server_start_changes_nothing(url: str):
    migrate(url)
    migrate(url)
    engine = open_database(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("select version_num from alembic_version")).scalars().all() == [head()]
    engine.dispose()


def test_labels_survive_every_migration_down_to_the_first_and_up_again(labels: Engine, url: str):
    with transaction(labels, writing=True) as session:
        save_label(session, TARGET, "Ada", text="German", note="mostly verbs", based_on=0)
        before = history(session, TARGET.run, TARGET.feature)
    labels.dispose()

    at_revision(url, "0001", down=True)
    assert tables(url) == ["alembic_version", "label"]
    migrate(url)

    with transaction(labels) as session:
        assert history(session, TARGET.run, TARGET.feature) == before


def test_down_to_nothing_leaves_no_table(labels: Engine, url: str):
    labels.dispose()
    at_revision(url, "base", down=True)
    assert tables(url) == ["alembic_version"]


def test_servers_that_start_together_migrate_one_after_another(url: str):
    program = f"from app.database.engine import migrate; migrate({url!r})"
    together = [
        subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE) for _ in range(3)
    ]
    assert [(server.communicate()[1], server.returncode) for server in together] == [(b"", 0)] * 3


def test_a_database_of_a_newer_program_is_left_alone_and_says_so(labels: Engine, url: str):
    with labels.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(LabelsUnusable, match=r"newer than this program.*Start the newer Crossdiff"):
        migrate(url)


@pytest.mark.parametrize(
    ("address", "fact"),
    [
        ("mysql://here/labels", "labels cannot be kept in mysql"),
        ("labels.db", "its address is not a database URL"),
        ("sqlite:////proc/nowhere/labels.db", "No such file or directory"),
    ],
)
def test_an_address_that_cannot_hold_labels_is_refused_with_its_reason(address: str, fact: str):
    with pytest.raises(LabelsUnusable, match=fact):
        migrate(address)


def test_a_damaged_file_is_refused_and_kept(tmp_path: Path):
    file = tmp_path / "labels.db"
    file.write_bytes(b"this is no database at all, " * 200)
    with pytest.raises(LabelsUnusable, match="not a database"):
        migrate(f"sqlite:///{file}")
    assert file.read_bytes().startswith(b"this is no database")


def test_a_reader_that_then_writes_waits_for_its_turn(labels: Engine):
    """Without beginning as a writer, SQLite refuses one of these at once: 'database is locked'."""
    begun = threading.Barrier(4)
    failures: list[BaseException] = []

    def write(author: str) -> None:
        try:
            begun.wait()
            with transaction(labels, writing=True) as session:
                history(session, TARGET.run, TARGET.feature)
                save_label(session, TARGET, author, text="mine", note="", based_on=0)
        except BaseException as failure:  # noqa: BLE001 - handed to the test
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("Ada", "Bo", "Cy", "Di")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with transaction(labels) as session:
        assert {row.author for row in history(session, TARGET.run, TARGET.feature)} == {"Ada", "Bo", "Cy", "Di"}


def test_what_was_acknowledged_is_there_after_kill_9(labels: Engine, url: str):
    program = f"""
from app.database.engine import open_database, transaction
from app.labels.store import LabelTarget, save_label
engine = open_database({url!r})
for revision in range(100000):
    with transaction(engine, writing=True) as session:
        target = LabelTarget("pair", 1, "f00d")
        save_label(session, target, "Ada", text=f"text {{revision}}", note="", based_on=revision)
    print(revision + 1, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(20):
        acknowledged = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in writer.stdout.read().split())])
    writer.wait()
    writer.stdout.close()

    with transaction(labels) as session:
        rows = history(session, "pair", 1)
    assert len(rows) - acknowledged in (0, 1), "one more may have been committed before it could be announced"
    assert sorted(row.revision for row in rows) == list(range(1, len(rows) + 1))
