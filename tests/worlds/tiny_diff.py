"""A whole comparison in small: two random models with tokenizers of different kinds, and text and chats to read."""

import json
import random
from pathlib import Path
from typing import Any

import duckdb
import yaml

from tests.worlds.tiny_models import LINES, tiny_gemma3, tiny_llama
from trainer.run.folder import RunFolder

STRANGE = [
    "Ünïcödé 👩‍👩‍👧‍👦 text",
    "中文字符 and words",
    "line\r\nbreaks\tand tabs",
    "<b>not markup</b> & <script>alert(1)</script>",
]


def tiny_diff(folder: Path, **changes: Any) -> Path:
    """Write models, corpus and recipe into a folder; returns the recipe's path. `changes` replace whole sections."""
    tiny_llama(folder / "llama")
    tiny_gemma3(folder / "gemma")
    chance = random.Random(7)
    sentences = [*LINES, *STRANGE]

    def paragraph() -> str:
        return " ".join(chance.choice(sentences) + f" {chance.randrange(10_000)}" for _ in range(6))

    texts = [{"text": paragraph()} for _ in range(60)]
    chats = [
        {"messages": [{"role": "user", "content": paragraph()}, {"role": "assistant", "content": paragraph()}]}
        for _ in range(40)
    ]
    for name, records in (("texts", texts), ("chats", chats)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    recipe: dict[str, Any] = {
        "name": "tiny-diff",
        "sources": [
            {"name": "left", "model": str(folder / "llama"), "layer": 1, "dtype": "float32"},
            {"name": "right", "model": str(folder / "gemma"), "layer": 2, "dtype": "float32"},
        ],
        "corpus": {
            "context": 64,
            "held_out": 0.2,
            "mix": [
                {"name": "texts", "path": str(folder / "texts.jsonl"), "share": 0.6},
                {
                    "name": "chats",
                    "path": str(folder / "chats.jsonl"),
                    "column": "messages",
                    "format": "chat",
                    "share": 0.4,
                },
            ],
        },
        "harvest": {"rows": 2500, "outlier_norm": 20},
        "crosscoder": {"features": 48, "exclusive_share": 0.1, "sparsity": {"k": 4}},
        "training": {"batch": 128, "epochs": 4, "learning_rate": 0.01, "checkpoint_every": 8},
        "analysis": {"contexts": {"top": 4, "per_quantile": 2, "window": 12}, "logits": 3},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes, allow_unicode=True), encoding="utf-8")
    return path


def result_rows(run: RunFolder, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in the published results of a run."""
    with duckdb.connect(str(run.results()), read_only=True) as results:
        return results.sql(query).fetchall()
