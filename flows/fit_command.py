"""The command `isoflop fit`: laws of runs that were trained anywhere."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[str, typer.Argument(help="runs.csv, runs.parquet, or mlflow:EXPERIMENT")]
Law = Annotated[str, typer.Option(help="chinchilla, tied, gamma, kaplan, no-E or over-training")]
Estimator = Annotated[str, typer.Option(help="huber-log, ls-log, ls or vp")]
Delta = Annotated[str, typer.Option(help="Huber's delta in nats of ln L, or auto")]
Resamples = Annotated[int, typer.Option(help="bootstrap resamples behind every interval")]
Level = Annotated[float, typer.Option(help="share of the resamples that an interval holds")]
Targets = Annotated[list[float] | None, typer.Option("--target", help="FLOPs at which the optimum is wanted")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="NAME=THEIRS", help="their column, as N=params")
]
Units = Annotated[
    list[str] | None, typer.Option("--unit", metavar="NAME=UNIT", help="what a column counts, as N=M")
]
Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="only these rows of the file")
]
Profile = Annotated[
    list[str] | None, typer.Option("--profile", metavar="QUANTITY", help="its profile likelihood too, as a")
]
Serve = Annotated[float, typer.Option(help="tokens to serve: the model of least training plus inference")]
Arch = Annotated[str | None, typer.Option(help="architecture, where no column says it")]
Context = Annotated[int | None, typer.Option("--context-length", help="context, where no column says it")]
Out = Annotated[Path | None, typer.Option(help="folder of the results; NAME-laws by default")]


def fit(
    source: Source,
    law: Law = "chinchilla",
    estimator: Estimator = "huber-log",
    delta: Delta = "0.001",
    resamples: Resamples = 1000,
    level: Level = 0.95,
    targets: Targets = None,
    seed: int = 0,
    columns: Columns = None,
    units: Units = None,
    where: Where = None,
    profile: Profile = None,
    serve: Serve = 0.0,
    arch: Arch = None,
    context_length: Context = None,
    out: Out = None,
) -> None:
    """Fit scaling laws to a table of runs: parabolas, power laws, a parametric law, and a report."""
    from tasks.fit_runs import fit_source, law_settings, parse_mapping

    settings = law_settings(
        law=law,
        estimator=estimator,
        delta=delta,
        resamples=resamples,
        level=level,
        targets=targets or [],
        seed=seed,
        profile=profile or [],
        serve=serve,
    )
    options: dict[str, Any] = {"arch": arch, "context_length": context_length, "out": out}
    found = fit_source(
        source,
        settings,
        columns=parse_mapping(columns, "column"),
        units=parse_mapping(units, "unit"),
        where=parse_mapping(where, "where"),
        command=shlex.join(["isoflop", *sys.argv[1:]]),
        **options,
    )
    print(found.text)
    print(f"\n{found.analysis}\n{found.report}")
