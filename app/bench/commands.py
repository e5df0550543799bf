"""Commands `crossdiff bench NAME`: measure and print a table, with --json also one line of JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trainer.bench.report import Report

json_option = click.option("--json", "as_json", is_flag=True, help="Also print the figures as JSON, in the last line.")
rounds_option = click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of interleaved rounds of measurement.",
)
recipe_option = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Recipe whose models to run; nothing is fetched.  [default: the demo's]",
)
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe. May be repeated."
)


@click.group()
def bench() -> None:
    """Measure a part: its speed against a physical limit or a peer, or its results against a ground truth."""


@bench.command()
@recipe_option
@overrides_option
@rounds_option
@json_option
def harvest(recipe: Path | None, overrides: tuple[str, ...], rounds: int, as_json: bool) -> None:
    """Harvest of real text, against the bare forward passes of its models."""
    from trainer.bench.harvest import bench_harvest
    from trainer.bench.prerequisites import DEMO

    _show(bench_harvest(recipe or DEMO, overrides, rounds=rounds), as_json)


@bench.command()
@click.option("--variant", help="Measure this variant only.  [default: the demo's setup and five more]")
@click.option("--widths", default="576,640", show_default=True, help="Widths of the sources, with --variant.")
@click.option("--features", type=click.IntRange(2), default=8192, show_default=True, help="With --variant.")
@click.option("--k", type=click.IntRange(1), default=32, show_default=True, help="With --variant.")
@click.option("--batch", type=click.IntRange(1), default=512, show_default=True, help="Rows, with --variant.")
@click.option(
    "--scaling", is_flag=True, help="Measure the cost of a row as features, k, width and batch grow, instead."
)
@rounds_option
@json_option
def train(variant: str | None, widths: str, scaling: bool, rounds: int, as_json: bool, **sizes: int) -> None:
    """Whole training steps, against one dense product of all rows with all features."""
    if scaling:
        from trainer.bench.scaling import bench_scaling

        _show(bench_scaling(rounds=rounds), as_json)
        return
    from trainer.bench.train import TrainSetup, bench_train

    setups = () if variant is None else (TrainSetup(variant, _numbers("--widths", widths), **sizes),)
    _show(bench_train(setups, rounds=rounds), as_json)


@bench.command()
@rounds_option
@json_option
def store(rounds: int, as_json: bool) -> None:
    """Shuffled batches read from a store, against training on them."""
    from trainer.bench.store import bench_store

    _show(bench_store(rounds=rounds), as_json)


@bench.command()
@click.option("--rows", type=click.IntRange(2048), default=200_000, show_default=True, help="Rows; then twice as many.")
@click.option("--widths", default="576,640", show_default=True, help="Widths of the two sources.")
@click.option("--features", type=click.IntRange(64), default=8192, show_default=True, help="Size of the dictionary.")
@click.option("--k", type=click.IntRange(1), default=32, show_default=True, help="Active features per row.")
@json_option
def analyse(widths: str, as_json: bool, **sizes: int) -> None:
    """Analysis of every feature, against encoding the same rows once; and its memory when rows double."""
    from trainer.bench.analyse import bench_analyse

    two_widths = _numbers("--widths", widths)
    if len(two_widths) != 2:
        raise click.UsageError(f"--widths {widths!r} is not two numbers. Write them like 576,640.")
    _show(bench_analyse(widths=two_widths, **sizes), as_json)


@bench.command()
@click.option(
    "--world", default="paper", show_default=True, help="paper, widths, noisy, pairs, ample, scarce or layers."
)
@click.option("--variants", metavar="A,B", help="Variants to train.  [default: the world's own]")
@click.option("--sizes", metavar="N,M", help="Features in the dictionary.  [default: the world's own]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of worlds; every variant and size is trained on each.",
)
@click.option("--rows", type=click.IntRange(1), default=2_000_000, show_default=True, help="Rows to train on.")
@click.option("--exclusive-share", type=float, help="Share of the concepts that one source alone holds.")
@overrides_option
@json_option
def toy(variants: str | None, sizes: str | None, as_json: bool, **options: Any) -> None:
    """Toy worlds with known concepts, and how many of them each variant finds."""
    from trainer.bench.toy import bench_toy

    names = tuple(name.strip() for name in variants.split(",")) if variants else ()
    _show(bench_toy(variants=names, sizes=_numbers("--sizes", sizes) if sizes else (), **options), as_json)


@bench.command()
@recipe_option
@overrides_option
@click.option("--null", "kinds", multiple=True, metavar="KIND", help="8bit, 4bit or merges.  [default: all]")
@click.option("--source", "sources", multiple=True, help="Source whose model to copy.  [default: each]")
@json_option
def nulls(recipe: Path | None, overrides: tuple[str, ...], as_json: bool, **chosen: tuple[str, ...]) -> None:
    """Models against copies of themselves, in which every claim is false."""
    from app.bench.nulls import bench_nulls
    from trainer.bench.prerequisites import DEMO

    _show(bench_nulls(recipe or DEMO, overrides, **chosen), as_json)


@bench.command()
@recipe_option
@overrides_option
@click.option("--organism", "names", multiple=True, metavar="NAME", help="One of them only.  [default: all]")
@json_option
def organisms(recipe: Path | None, overrides: tuple[str, ...], as_json: bool, names: tuple[str, ...]) -> None:
    """Fine-tunes with a planted behaviour, and where it stands among the findings."""
    from app.bench.organisms import bench_organisms
    from trainer.bench.prerequisites import DEMO

    _show(bench_organisms(recipe or DEMO, names, overrides), as_json)


@bench.command()
@click.argument("run")
@json_option
def enrichment(run: str, as_json: bool) -> None:
    """On what text the features of each model of a finished RUN fire, against shared ones."""
    from app.bench.enrichment import bench_enrichment

    _show(bench_enrichment(run), as_json)


@bench.command()
@click.option("--features", type=click.IntRange(64), default=8192, show_default=True, help="Size of the synthetic run.")
@click.option("--visitors", type=click.IntRange(1), default=4, show_default=True, help="Concurrent visitors.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1),
    default=50.0,
    show_default=True,
    help="Pages per second that all visitors request together.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Duration of the concurrent visits."
)
@click.option(
    "--alone", type=click.IntRange(1), default=50, show_default=True, help="Pages of each kind for a single visitor."
)
@json_option
def explorer(features: int, as_json: bool, **load: Any) -> None:
    """A synthetic run on a real server, under requests of one visitor and of several."""
    from app.bench.explorer import Load, bench_explorer

    _show(bench_explorer(features=features, load=Load(**load)), as_json)


@bench.command()
@recipe_option
@overrides_option
@click.option("--source", help="Source of the recipe to steer.  [default: the first]")
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Length of each text.")
@rounds_option
@json_option
def steer(recipe: Path | None, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Generation with a direction added, against plain generation."""
    from app.bench.steer import bench_steer
    from trainer.bench.prerequisites import DEMO

    _show(bench_steer(recipe or DEMO, overrides, **options), as_json)


def _show(report: "Report", as_json: bool) -> None:
    click.echo(report.text())
    if as_json:
        click.echo(report.json())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Parses positive integers separated by commas. Raises click.UsageError for anything else."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.UsageError(f"{option} {text!r} is no list of numbers. Write it like 576,640.")
    return tuple(int(part) for part in parts)
