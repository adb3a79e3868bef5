"""The command `isoflop compare`: did a change of data or recipe change the laws?"""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Sweep = Annotated[str, typer.Argument(help="a sweep's name, its folder, or a run table")]


def compare(
    first: Sweep,
    second: Sweep,
    law: Annotated[str, typer.Option(help="form of the law")] = "chinchilla",
    resamples: Annotated[int, typer.Option(help="bootstrap resamples behind every interval")] = 1000,
    level: Annotated[float, typer.Option(help="share of the resamples that an interval holds")] = 0.95,
    targets: Annotated[
        list[float] | None, typer.Option("--target", help="FLOPs beyond the grids to compare at")
    ] = None,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the page; A-against-B by default")] = None,
) -> None:
    """Compare the laws of two sweeps: the second against the first, with intervals and a test."""
    from tasks.comparing import compare as compare_two
    from tasks.fit_runs import law_settings
    from tasks.state import open_state

    settings = law_settings(
        law=law,
        estimator="huber-log",
        delta="0.001",
        resamples=resamples,
        level=level,
        targets=targets or [],
        seed=seed,
    )
    command = shlex.join(["isoflop", *sys.argv[1:]])
    done = compare_two(first, second, settings, open_state(), out=out, command=command)
    print(f"{done.text}\nreport: {done.report}")
