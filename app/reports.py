"""Commands that print what runs report."""

import click


@click.command()
@click.argument("run")
def findings(run: str) -> None:
    """Print what a finished RUN reports, the best supported first.

    `GET /api/v1/runs/RUN/findings` of the explorer has the same with passages, as JSON.
    """
    from app.results.connection import RunCatalog
    from app.results.runs.baselines import baselines_of
    from app.results.runs.findings import findings_of, in_words
    from app.settings import Settings
    from app.web.behaviour_sentence import behaviour_sentence
    from app.web.headline_sentence import sentence_of

    results = RunCatalog(Settings.from_environment().runs).results(run)
    sentences = [sentence_of(results), behaviour_sentence(baselines_of(results).pairs)]
    _print([*(sentence for sentence in sentences if sentence), *in_words(findings_of(results).findings)])


@click.command()
@click.argument("run")
@click.argument("other")
@click.option("--first", type=click.IntRange(1), help="Only so many findings of either.")
def compare(run: str, other: str, first: int | None) -> None:
    """Say which findings of RUN hold in another run of the same comparison, and the other way round."""
    from app.results.connection import RunCatalog
    from app.results.runs.comparison import compare_runs, in_words
    from app.settings import Settings

    catalog = RunCatalog(Settings.from_environment().runs)
    _print(in_words(compare_runs(catalog.results(run), catalog.results(other), first=first)))


def _print(lines: list[str]) -> None:
    """Print lines; what a file holds never moves the cursor or begins a line."""
    for line in lines:
        click.echo("".join(each if each.isprintable() else " " for each in line))
