"""The commands `isoflop import ...`: runs that were trained elsewhere, into MLflow and the run table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.fit_command import Arch, Columns, Context, Units
from tasks.environment import enter
from tasks.importing import Imported, import_runs, import_study, parse_mapping
from tasks.importing import Progress as Report
from tasks.state import open_state

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Bring in runs that were trained elsewhere: published studies, CSV, Parquet.",
)
console = Console()

PAPER_PATH = typer.Argument(
    metavar="PATH", help="folder of the authors' pickles or of tidy tables, or one file"
)


@app.command("xlstm-scaling-laws")
def xlstm_scaling_laws(path: Annotated[Path, PAPER_PATH]) -> None:
    """The published runs of *xLSTM Scaling Laws* (arXiv:2510.02228) and its inference measurements."""
    state = open_state()
    enter(state)
    with _progress() as report:
        imported = import_study(path, state, report)
    _say(imported)


@app.command("runs")
def runs(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="runs.csv or runs.parquet")],
    name: Annotated[str | None, typer.Option(help="MLflow experiment; the file's name by default")] = None,
    columns: Columns = None,
    units: Units = None,
    arch: Arch = None,
    context_length: Context = None,
) -> None:
    """Any table of runs: N, D and loss, and what else the run table knows."""
    state = open_state()
    enter(state)
    with _progress() as report:
        imported = import_runs(
            path,
            state,
            name=name,
            columns=parse_mapping(columns, "column"),
            units=parse_mapping(units, "unit"),
            arch=arch,
            context_length=context_length,
            progress=report,
        )
    _say(imported)


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line for each thing that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        last = ""

        def report(message: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(task, description=message, completed=done, total=total or None)
            if not console.is_terminal and message != last:
                console.print(message)
            last = message

        yield report


def _say(imported: Imported) -> None:
    """What came in, what did not and why, and where it is."""
    study, written = imported.study, imported.written
    for note in study.notes:
        console.print(f"{note.kind}: {note.text}", highlight=False, markup=False, soft_wrap=True)
    finished = study.runs.filter(study.runs["status"] == "finished").height
    with_curve = study.curves["run_key"].n_unique()
    console.print(
        f"{study.runs.height} runs, {finished} of them finished, {with_curve} with curves:"
        f" {written.new} new, {written.replaced} written again, {written.unchanged} as they were",
        highlight=False,
        soft_wrap=True,
    )
    if study.inference.height:
        console.print(f"{study.inference.height} measurements of inference", highlight=False)
    console.print(f"MLflow experiment {imported.experiment}; tables in {imported.folder}", soft_wrap=True)
