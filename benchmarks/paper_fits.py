"""The authors' whole grid of parametric fits, ours beside theirs: how long, and how low each objective is.

    python -m benchmarks.paper_fits --json result.json --markdown result.md
    python -m benchmarks.paper_fits --peer-starts 5

Every cell (architecture, runs, range of D/N, gamma, delta) is fitted to its minimum and set beside the
objective that the authors' stored parameters have on the same runs: theirs were fitted to xLSTM runs of
which 32 stood twice, so that the stored objective itself would compare other data. `--peer-starts` times
their optimiser (L-BFGS-B with finite differences, ftol 1e-32, scipy's logsumexp) from so many of their own
starts in each of twelve cells, on this machine, and extrapolates to the 2,000 or 8,000 starts of a cell.

`lnd_fits_summary.csv` and the runs are read from --data and are not in this repository.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import logsumexp

from sweeps.published import read_published
from sweeps.study.data import study_runs
from sweeps.study.parametric import Cell, CellFit, cell_runs, cells, fit_cells, objective_at

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "paper" / "tidy"
ARCHS = {"llama": "transformer", "mlstm": "mlstm"}
STARTS = {False: 2000, True: 8000}
"""Of the authors' script in each cell, without and with gamma."""
SCRIPTED = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 5.0)
"""Deltas of the authors' script; the stored files hold four more."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One cell."""

    arch: str
    experiment_set: str
    max_ratio: float
    gamma: bool
    delta: float
    n: int
    stored: float
    theirs: float
    """Objective of their parameters on the runs here."""
    ours: float
    scaled_gradient: float

    @property
    def excess(self) -> float:
        """Ours over theirs, minus 1: above 0 ours is worse."""
        return self.ours / self.theirs - 1.0


def published_fits(path: Path) -> dict[Cell, dict[str, float]]:
    """Their best stored parameters and objective of every cell in the meaningful, log-sum-exp form."""
    table = pl.read_csv(path, infer_schema_length=None)
    best = table.filter(pl.col("use_logsumexp") & (pl.col("selection") == "min_objective"))
    return {
        Cell(
            arch=ARCHS[row["model_type"]],
            experiment_set=row["experiment_set"],
            max_ratio=float(row["token_param_range"].split("-")[1]),
            gamma=row["fit_gamma"],
            delta=row["huber_delta"],
        ): {name: row[name] for name in ("objective", "A", "B", "E", "alpha", "beta", "gamma")}
        for row in best.iter_rows(named=True)
    }


def compare(
    runs: pl.DataFrame, fits: Mapping[Cell, CellFit], theirs: Mapping[Cell, Mapping[str, float]]
) -> list[Compared]:
    """Every cell that both have, ours the worst against theirs first."""
    found = [
        Compared(
            **asdict(cell),
            n=fit.n,
            stored=theirs[cell]["objective"],
            theirs=objective_at(runs, cell, theirs[cell]),
            ours=fit.objective,
            scaled_gradient=fit.scaled_gradient,
        )
        for cell, fit in fits.items()
        if cell in theirs
    ]
    return sorted(found, key=lambda row: -row.excess)


def time_grid(
    runs: pl.DataFrame, wanted: Sequence[Cell], workers: int
) -> tuple[dict[Cell, CellFit], dict[str, float]]:
    """The fits, and what they cost: wall seconds, CPU seconds of this process and its workers."""
    before, start = _cpu(), time.perf_counter()
    fits = fit_cells(runs, wanted, workers=workers)
    wall = time.perf_counter() - start
    return fits, {"workers": workers, "wall_s": wall, "cpu_s": _cpu() - before}


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def time_peer(runs: pl.DataFrame, starts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Their optimiser from `starts` of their starts in every set and form at delta 1e-3 and all ratios."""
    rng = np.random.default_rng(seed)
    timed = []
    for cell in cells(ratios=(5000.0,), deltas=(1e-3,)):
        table = cell_runs(runs, cell)
        N, D, loss = (table[name].to_numpy() for name in ("N", "D", "loss"))
        gammas = (0.0, 0.5, 1.0, 1.5) if cell.gamma else (1.0,)
        sizes, slopes, offsets = (0, 5, 10, 15, 20), (0, 0.2, 0.5, 1), (-1, -0.5, 0, 0.5, 1)
        grid = list(product(sizes, sizes, offsets, slopes, slopes, gammas))
        chosen = rng.choice(len(grid), size=starts, replace=False)
        begun = time.process_time()
        best = min(_peer_fit(np.array(grid[i], float), N, D, loss, cell) for i in chosen)
        seconds = (time.process_time() - begun) / starts
        row = {"cpu_s_per_start": seconds, "starts_of_a_cell": STARTS[cell.gamma], "best": best}
        timed.append({**asdict(cell), **row})
    return timed


def _peer_fit(start: np.ndarray, N: np.ndarray, D: np.ndarray, loss: np.ndarray, cell: Cell) -> float:
    log_N, log_D, log_L = np.log(N), np.log(D), np.log(loss)

    def objective(p: np.ndarray) -> float:
        a, b, e, alpha, beta = p[:5]
        gamma = p[5] if cell.gamma else 1.0
        inner = gamma * logsumexp([a - alpha * log_N, b - beta * log_D], axis=0)
        r = np.abs(logsumexp([inner, np.full_like(inner, e)], axis=0) - log_L)
        return float(np.sum(np.where(r <= cell.delta, r**2 / 2, cell.delta * (r - cell.delta / 2))))

    p = start if cell.gamma else start[:5]
    options = {"ftol": 1e-32, "gtol": 1e-32, "maxls": 200, "maxfun": 100_000, "maxiter": 100_000}
    with np.errstate(all="ignore"):
        return float(minimize(objective, p, method="L-BFGS-B", options=options).fun)


def markdown(result: Mapping[str, Any]) -> str:
    """The result as tables."""
    cost, rows = result["cost"], result["cells"]
    worse = [row for row in rows if row["excess"] > 1e-8]
    lines = [
        "# The authors' grid of parametric fits",
        "",
        f"{result['fitted']} cells fitted in {cost['wall_s']:.1f} s with {cost['workers']} processes"
        f" ({cost['cpu_s']:.1f} CPU s; load average {result['load']:.1f} on {result['cores']} cores).",
        f"{len(rows)} have a stored fit; ours is worse (by more than 1e-8) in {len(worse)} and lower by"
        f" more than"
        f" 1e-6 in {sum(row['excess'] < -1e-6 for row in rows)}.",
        "",
        "| cells closest to theirs | n | theirs on these runs | ours | ours / theirs - 1 |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows[:8]),
        "",
        "| cells furthest below theirs | n | theirs on these runs | ours | ours / theirs - 1 |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows[-8:]),
    ]
    if result["peer"]:
        hours = result["peer_core_hours"]
        lines += [
            "",
            "| their optimiser, CPU s a start | runs | gamma | starts of a cell |",
            "|---|---|---|---|",
            *(
                f"| {row['cpu_s_per_start']:.3f} | {row['arch']} {row['experiment_set']}"
                f" | {'yes' if row['gamma'] else 'no'} | {row['starts_of_a_cell']} |"
                for row in result["peer"]
            ),
            "",
            f"Extrapolated to their scripted grid (7 deltas, 18 cells each, 2,000 and 8,000 starts):"
            f" {hours:.0f}"
            f" core-hours. Ours for the same 252 cells and 144 more: {cost['cpu_s'] / 3600:.4f}.",
        ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    gamma = "gamma" if row["gamma"] else "no gamma"
    name = f"{row['arch']} {row['experiment_set']}, D/N to {row['max_ratio']:g}, {gamma}"
    numbers = f"{row['n']} | {row['theirs']:.9g} | {row['ours']:.9g} | {row['excess']:.2e}"
    return f"| {name}, delta {row['delta']:g} | {numbers} |"


def peer_core_hours(timed: Sequence[Mapping[str, Any]]) -> float:
    """Their scripted grid from the mean seconds a start of each form."""
    total = 0.0
    for gamma in (False, True):
        seconds = [row["cpu_s_per_start"] for row in timed if row["gamma"] == gamma]
        total += float(np.mean(seconds)) * STARTS[gamma] * 18 * len(SCRIPTED)
    return total / 3600


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, compare, print."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the tidy tables")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer-starts", type=int, default=0, help="starts of the authors' optimiser a cell")
    parser.add_argument("--cells", type=int, default=None, help="fit only so many cells, for a quick look")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    summary = options.data / "lnd_fits_summary.csv"
    if not summary.exists():
        raise SystemExit(f"{summary}: no such file; name its folder with --data (it is not in this project)")
    runs = study_runs(read_published(options.data).runs)
    fits, cost = time_grid(runs, cells()[: options.cells], options.workers)
    rows = [{**asdict(row), "excess": row.excess} for row in compare(runs, fits, published_fits(summary))]
    peer = time_peer(runs, options.peer_starts) if options.peer_starts else []
    result = {
        "cost": cost,
        "fitted": len(fits),
        "cells": rows,
        "peer": peer,
        "peer_core_hours": peer_core_hours(peer) if peer else None,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
