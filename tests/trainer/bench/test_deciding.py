"""What an outcome hangs on is found by following imports, and nothing else counts."""

from trainer.bench import deciding
from trainer.bench.deciding import fingerprint, reached
from trainer.bench.toy import DECIDING


def test_what_trains_draws_and_scores_decides_and_what_is_beside_it_does_not():
    found = reached(*DECIDING)

    assert {
        "trainer.training.trainer",
        "trainer.training.losses",
        "trainer.crosscoder.selection",
        "trainer.kernels.sparse",
        "trainer.toy.firing",
    } <= found
    assert {
        "trainer.toy.scoring",
        "trainer.store.batches",
        "trainer.crosscoder.normalisation",
        "trainer.bench.trial",
    } <= found
    assert not {"trainer.pipeline", "trainer.harvest", "trainer.corpus", "trainer.interchange", "app.cli"} & found


def test_only_a_change_in_what_is_reached_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(deciding, "ROOT", tmp_path)
    files = {
        "trainer/__init__.py": "",
        "trainer/first.py": "import os\n\ndef late():\n    from trainer.part import second\n",
        "trainer/part/__init__.py": "",
        "trainer/part/second.py": "import trainer.third\n",
        "trainer/third.py": "",
        "trainer/beside.py": "import trainer.first\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = fingerprint("trainer.first")

    (tmp_path / "trainer/beside.py").write_text("changed = True\n")
    assert fingerprint("trainer.first") == before
    (tmp_path / "trainer/third.py").write_text("changed = True\n")
    assert fingerprint("trainer.first") != before
    assert reached("trainer.first") == {"trainer.first", "trainer.part", "trainer.part.second", "trainer.third"}
