"""What a run reports, from two models that differ on text with one sentence, and from two that do not differ."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.worlds.tiny_diff import STRANGE, result_rows, tiny_diff
from tests.worlds.tiny_models import LINES
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.findings.behaviour_row import Lows
from trainer.analysis.findings.finding_list import Findings
from trainer.analysis.findings.surprise_gain import surprise_gain
from trainer.pipeline.commands import run
from trainer.run.folder import RunFolder

PLANTED = LINES[5]
"""The sentence with the token; about half of the documents have it."""
WORDS = set(PLANTED.lower().rstrip(".").split())


def compared(world: Path, *, changed: bool) -> RunFolder:
    """A run of a model and a copy of it, whose embeddings of tokens that one sentence has alone may be others."""
    recipe = tiny_diff(
        world,
        sources=[
            {"name": name, "model": str(world / folder), "layer": 1, "dtype": "float32"}
            for name, folder in (("base", "llama"), ("tuned", "tuned"))
        ],
        harvest={"rows": 8000, "outlier_norm": 1e6},
        training={"batch": 128, "epochs": 1, "learning_rate": 0.01},
        crosscoder={"features": 48, "variant": "standard", "sparsity": {"k": 4}, "residual": {"features": 16, "k": 2}},
    )
    shutil.copytree(world / "llama", world / "tuned")
    if changed:
        weights = load_file(world / "tuned" / "model.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(world / "llama")
        others = set(tokenizer(" ".join([*STRANGE, *(line for line in LINES if line != PLANTED)])).input_ids)
        own = [token for token in tokenizer(PLANTED).input_ids if token not in others]
        embedding = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = embedding.clone()  # what is predicted stays as it was
        embedding[own] = -20 * embedding[own]
        save_file(weights, world / "tuned" / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((world / "tuned" / "config.json").read_text())
        (world / "tuned" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return run(recipe)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("planted")
        patch.setenv("CROSSDIFF_HOME", str(home / "home"))
        return compared(home / "world", changed=True)


def test_text_on_which_a_model_was_changed_is_the_first_finding(planted):
    findings = result_rows(
        planted, "select kind, title, names, effect, low, high, looked_in, documents, fdr from finding"
    )

    kind, title, names, effect, low, high, looked_in, documents, fdr = findings[0]
    assert kind == "passage"
    assert any(f"“{word}”" in title for word in WORDS), title
    assert names and set(names) <= WORDS and len(set(names)) == len(names)
    assert 1.5 <= low < effect < high
    assert looked_in == 2 and documents >= 4
    assert fdr == 0
    (nulls,) = result_rows(planted, "select reported, in_null from behaviour_null where kind = 'passage'")
    assert nulls[0] == len([one for one in findings if one[0] == "passage"]) and nulls[1] == 0


def test_a_finding_is_shown_by_passages_with_the_tokens_of_both_models(planted):
    passages = result_rows(
        planted,
        """select text, tokens, places, apart, reference, byte_start from finding_member join passage using (passage)
        where finding = 0""",
    )

    assert 1 <= len(passages) <= 4
    for text, tokens, places, apart, reference, start in passages:
        assert apart > reference > 0
        assert len(tokens) == 2 and tokens[0] == tokens[1], "one tokenizer"
        assert start <= places[0]["byte_end"] <= places[-1]["byte_end"] <= start + len(text.encode())
    assert all(PLANTED[:20] in text or PLANTED[-20:] in text for text, *_ in passages)


def test_features_are_asked_where_the_models_differ_more(planted):
    ratios = result_rows(planted, "select feature, ratio, low, high, documents from feature_divergence")

    assert ratios and [row[0] for row in ratios] == sorted(row[0] for row in ratios)
    assert all(low <= ratio <= high and documents >= 4 for _, ratio, low, high, documents in ratios)
    members = result_rows(
        planted,
        "select m.feature, share from finding_member m join finding using (finding) "
        "where m.feature is not null and kind != 'feature'",
    )
    low_of = {feature: low for feature, _, low, _, _ in ratios}
    assert all(low_of[feature] >= 1.5 and 0.6 <= share <= 1 for feature, share in members)


def test_a_model_and_an_unchanged_copy_of_it_have_no_finding(tmp_path):
    folder = compared(tmp_path / "world", changed=False)

    assert result_rows(folder, "select count(*) from finding") == [(0,)]
    (apart,) = result_rows(
        folder, "select value from baseline_divergence where measure = 'jensen_shannon_token' and corpus is null"
    )
    assert apart[0] < 1e-6
    assert result_rows(folder, "select count(*) from feature_divergence") == [(0,)], "what rounding leaves has no place"
    assert result_rows(folder, "select count(*) from feature where verdict = 'supported'") == [(0,)]


def test_findings_are_ranked_by_margin_and_features_where_predictions_differ_come_last():
    found = Findings()
    kinds = [("divergence", 0.9), ("passage", 0.2), ("feature", 0.5), ("divergence", 0.95)]
    for number, (kind, margin) in enumerate(kinds):
        found.add(margin, {"kind": kind, "title": str(number)}, [{"feature": number, "share": 1.0}], [])

    tables = found.tables()

    assert [(row["finding"], row["title"]) for row in tables["finding"]] == [(0, "2"), (1, "1"), (2, "3"), (3, "0")]
    assert [(row["finding"], row["feature"]) for row in tables["finding_member"]] == [(0, 2), (1, 1), (2, 3), (3, 0)]


def test_the_error_rate_is_that_of_the_null_among_themes_as_strong():
    lows = Lows([5.0, 3.0, 2.0, 1.6], [1.7])

    assert [lows.fdr(low) for low in lows.run] == [0, 0, 0, 0.25]
    assert Lows([1.5], [2.0, 3.0]).fdr(1.5) == 1


def test_one_model_expects_some_text_better_than_elsewhere_of_what_is_compared():
    spans = SpanTable(
        0,
        1,
        sequence=np.arange(8),
        byte_start=np.zeros(8, int),
        byte_end=np.full(8, 10),
        apart=np.ones(8),
        reference=np.ones(8),
        control=np.ones(8),
        surprise=np.array([[9.0, 9, 9, 3, 3, 3, 90, 90], [3.0, 3, 3, 3, 3, 3, 0, 0]]),
        expected=np.full((2, 8), "", object),
    )
    among = np.arange(8) < 6  # the last two were told before

    gain, low, high = surprise_gain(spans, among, np.arange(6) < 3, np.arange(6))

    assert gain == pytest.approx(0.6) == pytest.approx(low) == pytest.approx(high), "6 nats in 10 bytes, in every group"
