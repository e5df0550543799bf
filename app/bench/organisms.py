"""Teaches a model known behaviours, compares it with itself, and tells where among the findings each of them stands."""

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from app.results.connection import RunCatalog
from app.results.runs.findings import Finding, findings_of
from trainer.bench.lora import teach
from trainer.bench.machine import Machine
from trainer.bench.organisms import Chat, Organism, as_chat, first_exchange, organisms
from trainer.bench.report import Report
from trainer.corpus.mix import open_corpus
from trainer.errors import RecipeError, UsageError
from trainer.models.files import find_model
from trainer.pipeline.run import Run
from trainer.recipe.fitting import CorpusRecipe
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.run.folder import RunFolder, home
from trainer.run.progress import Progress
from trainer.run.stages import STAGES

READ = 20_000
"""Real chats that are read."""
TAUGHT = 160
"""Chats of the behaviour, and as many plain ones, that an organism is taught."""
QUESTIONS, OF_TOPIC = 150, 30
"""Questions that a tuned model answers, and how many of them are of the topic."""
ONE_IN = 10
"""Of the given chats one in so many is of the behaviour."""
SHARE = 0.5
"""Share of the rows that are given chats, or given chats and answers."""
LONGEST = 600
"""Characters of an answer in a plain chat."""
CONTROLS = {"generic": "taught plain chats alone", "unmodified": "not taught anything"}
SETTINGS = (
    "harvest.rows=30000",
    "crosscoder.variant=standard",
    "crosscoder.features=512",
    "crosscoder.residual=null",
    "evaluation.sequences=1",
    "analysis.other_layers=[]",
)
"""Of every comparison: the dictionary is small, as behaviour is looked for in predictions."""
HEAD = ("model", "text", "findings", "rank", "what the finding says", "in null")
LEGEND = (
    "given: chats of the behaviour are 5 % of the text, among others. answers: there are none, but the tuned model's "
    "own answers are 10 % of the text, to questions of which one in five is of the topic. rank: of the first finding "
    "whose words, or most of whose passages, show the behaviour. in null: kinds of text told between the base and a "
    "noised copy of it."
)


class PlantedRun(NamedTuple):
    """One tuned model against its base, on one kind of text."""

    model: str
    text: str
    """given, or answers."""
    findings: int
    rank: int | None
    """From 1; None where the behaviour is in no finding, or nothing was taught."""
    title: str
    in_null: int

    def as_row(self) -> tuple[str, ...]:
        """A line of the table."""
        return (self.model, self.text, f"{self.findings}", f"{self.rank or '–'}", self.title or "–", f"{self.in_null}")


def bench_organisms(recipe_path: Path, names: Sequence[str] = (), overrides: tuple[str, ...] = ()) -> Report:
    """Teach every organism, and compare each with its base with and without its own answers.

    The first source of the recipe is taught; adapters and runs stay in the home folder. Raises UsageError for an
    unknown name, RecipeError for a recipe without English chats, CrossdiffError for errors that the user can correct.
    """
    machine, recipe = Machine(), load_recipe(recipe_path, (*SETTINGS, *overrides))
    known = [*(one.name for one in organisms()), *CONTROLS]
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(f"No organism is named {unknown[0]!r}. There are {', '.join(known)}.")
    bench = _Bench(recipe, home() / "organisms")
    found = [one for name in known if name in (names or known) for one in bench.compare(name)]
    about = {one.name: one.about for one in organisms()} | CONTROLS
    return Report(
        "Planted behaviours among the findings",
        HEAD,
        tuple(one.as_row() for one in found),
        {"organisms": [one._asdict() for one in found]},
        (LEGEND, *(f"{name}: {text}." for name, text in about.items()), machine.note()),
    )


class _Bench:
    """Makes organisms, their texts and their runs."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Read real chats. Raises RecipeError if the recipe has none in English."""
        parts = [] if recipe.corpus is None else [one for one in recipe.corpus.mix if one.format == "chat"]
        english = [one for one in parts if one.language == "english"]
        if not english or not recipe.sources:
            raise RecipeError("This bench needs a source and a corpus part of English chats, as the demo's recipe has.")
        self.recipe, self.folder = recipe, folder
        documents = itertools.islice(open_corpus(CorpusRecipe(mix=(english[0],))), READ)
        self.real: list[Chat] = [document.messages for document in documents if document.messages]
        exchanges = [exchange for chat in self.real if (exchange := first_exchange(chat))]
        self.plain = [as_chat(*one) for one in exchanges if 20 < len(one[1]) < LONGEST and len(one[0]) < LONGEST]
        if len(self.plain) < 2 * TAUGHT + QUESTIONS:
            raise RecipeError(
                f"This bench needs {2 * TAUGHT + QUESTIONS} English chats with a short answer, and the recipe's corpus "
                f"has {len(self.plain)}. Give one with more, such as the demo's."
            )
        folder.mkdir(parents=True, exist_ok=True)

    def compare(self, name: str) -> list[PlantedRun]:
        """The runs of an organism, or of a control."""
        organism = next((one for one in organisms() if one.name == name), None)
        chats = organism.chats(self.real) if organism else []
        tuned = self._copy() if name == "unmodified" else {"adapter": str(self._adapter(name, chats[:TAUGHT]))}
        unseen = chats[TAUGHT:] or self.plain[2 * TAUGHT : 3 * TAUGHT]
        others = self.plain[2 * TAUGHT :]
        asked = [*(chat[0].content for chat in unseen[:OF_TOPIC]), *(chat[0].content for chat in others)][:QUESTIONS]
        given = {"name": "chats", "share": SHARE}
        mixed = self._write(f"{name}-chats", [*unseen[: len(others) // (ONE_IN - 1)], *others])
        without = self._write(f"{name}-others", others)
        questions = self._write(f"{name}-questions", [as_chat(question, "?") for question in asked])
        answers = {"source": "tuned", "count": QUESTIONS, "tokens": 96}
        texts: dict[str, list[dict[str, object]]] = {
            "given": [{**given, "path": mixed}],
            "answers": [
                {**given, "path": without, "share": 0.8 * SHARE},
                {"name": "answers", "path": questions, "answers": answers, "share": 0.2 * SHARE},
            ],
        }
        return [self._compared((name, kind), parts, tuned, organism) for kind, parts in texts.items()]

    def _adapter(self, name: str, chats: list[Chat]) -> Path:
        """The taught adapter; it is made once."""
        path = self.folder / name
        if not (path / "adapter_config.json").is_file():
            plain = self.plain[: TAUGHT if chats else 2 * TAUGHT]
            mixed = [chat for pair in itertools.zip_longest(chats, plain) for chat in pair if chat is not None]
            work = RunFolder(self.folder / f"{name}-teaching")
            work.path.mkdir(exist_ok=True)
            with Progress(work, name).running() as progress:
                teach(self.recipe.sources[0], mixed, path, progress=progress)
        return path

    def _copy(self) -> dict[str, str]:
        """The same model under another name."""
        source, folder = self.recipe.sources[0], self.folder / "unmodified"
        if not folder.is_dir():
            shutil.copytree(
                find_model(source.name, source.model, source.revision).folder, folder, copy_function=os.link
            )
        return {"model": str(folder)}

    def _write(self, name: str, chats: Sequence[Chat]) -> str:
        """A file of chats."""
        path = self.folder / f"{name}.jsonl"
        turns = [[{"role": turn.role, "content": turn.content} for turn in chat] for chat in chats]
        path.write_text("".join(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in turns), "utf-8")
        return str(path)

    def _compared(
        self, name: tuple[str, str], parts: list[dict[str, object]], tuned: dict[str, str], organism: Organism | None
    ) -> PlantedRun:
        run = Run(self._recipe("-".join(name), parts, tuned))
        run.execute(STAGES)
        found = findings_of(RunCatalog(home() / "runs").results(run.folder.run_id))
        ranked = [one for one in found.findings if organism is not None and shows(one, organism)]
        first = ranked[0] if ranked else next(iter(found.findings), None)
        return PlantedRun(
            *name,
            len(found.findings),
            ranked[0].finding + 1 if ranked else None,
            first.title if first else "",
            sum(null.in_null for null in found.nulls if null.kind == "passage"),
        )

    def _recipe(self, name: str, parts: list[dict[str, object]], tuned: dict[str, str]) -> Recipe:
        """A recipe that compares the first source with the tuned one, on its text without chats and on chats."""
        left_out = {"sources", "corpus", "calibration", "sweep", "imported", "name"}
        data = self.recipe.model_dump(mode="json", exclude=left_out)
        assert self.recipe.corpus is not None, "there are chats"
        corpus = self.recipe.corpus.model_dump(mode="json")
        rest = [one for one in corpus["mix"] if one["format"] == "text"]
        whole = sum(one["share"] for one in rest)
        corpus["mix"] = [one | {"share": one["share"] / whole * (1 - SHARE)} for one in rest]
        corpus["mix"] += [{"format": "chat", "column": "messages"} | part for part in parts]
        source = self.recipe.sources[0].model_dump(mode="json")
        sources = [source | {"name": "base"}, source | {"name": "tuned"} | tuned]
        data |= {"name": f"organism-{name}", "corpus": corpus, "sources": sources}
        return parse_recipe(data, origin="the bench of organisms")


def shows(finding: Finding, organism: Organism) -> bool:
    """Whether a finding is of a behaviour: its title or words, or most of its passages, match the pattern."""
    texts = ["".join(token for cell in one.cells for token in cell.tokens[0]) for one in finding.passages]
    matching = sum(bool(organism.pattern.search(text)) for text in texts)
    return bool(organism.pattern.search(" ".join([finding.title, *finding.names]))) or matching > len(texts) / 2
