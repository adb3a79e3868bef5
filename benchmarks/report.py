"""Fitting and rendering a sweep of 700 runs: seconds, seconds of the CPU, size of the page.

    python benchmarks/report.py [--runs 700] [--resamples 1000] [--json results.json]

Both architectures, five context lengths, five budgets; losses from a known surface with noise, a hundred
points of loss curve a run. The page must be made in 60 s on two cores and stay below 5 MB.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reports import Provenance, render
from sweeps.laws import LawSettings, analyse
from xlstm.accounting import count_parameters, mlstm_config, training_flops, transformer_config
from xlstm.config import ModelConfig

BUDGETS = (1e11, 3e11, 1e12, 3e12, 1e13)
CONTEXTS = (128, 256, 512, 1024, 2048)
MAKERS: dict[str, Callable[..., ModelConfig]] = {"mlstm": mlstm_config, "transformer": transformer_config}


def sweep(n_runs: int) -> pl.DataFrame:
    """A run table of real models with their own FLOPs."""
    rng = np.random.default_rng(0)
    cells = list(product(MAKERS, CONTEXTS, BUDGETS))
    widths = [4 * round(w / 4) for w in np.geomspace(16, 160, max(3, n_runs // len(cells)))]
    return pl.DataFrame([_run(rng, *cell, width) for cell in cells for width in widths])


def _run(rng: np.random.Generator, arch: str, context: int, budget: float, width: int) -> dict[str, Any]:
    config = MAKERS[arch](d_model=width, num_blocks=2, num_heads=2, vocab_size=256, ffn_multiple_of=8)
    N = count_parameters(config)
    D = budget / training_flops(config, context, 1.0)
    loss = (0.7 + 38 * N**-0.42 + 95 * D**-0.345) * np.exp(0.003 * rng.standard_normal())
    name = f"{arch}-{context}-{budget:.0e}-{width}"
    return {
        "run_key": name,
        "run_name": name,
        "arch": arch,
        "context_length": context,
        "budget": budget,
        "N": float(N),
        "N_non_embedding": float(count_parameters(config, embedding=False)),
        "D": D,
        "train_flops": training_flops(config, context, D),
        "loss": float(loss),
        "status": "finished",
        "d_model": width,
        "num_blocks": 2,
        "num_heads": 2,
        "mlflow_run_id": name,
        "mlflow_experiment_id": "1",
    }


def curves(runs: pl.DataFrame) -> pl.DataFrame:
    """A hundred points of each run's training loss."""
    shape = np.geomspace(1.0, 1e-3, 100)
    parts = [
        pl.DataFrame({"run_key": [key] * 100, "D": np.geomspace(D / 100, D, 100), "loss": loss + 2 * shape})
        for key, D, loss in runs.select("run_key", "D", "loss").iter_rows()
    ]
    return pl.concat(parts)


@contextmanager
def timed(results: dict[str, Any], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    results[f"{name}_s"] = time.perf_counter() - wall
    results[f"{name}_cpu_s"] = time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=700)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = sweep(options.runs)
    results: dict[str, Any] = {"runs": runs.height, "resamples": options.resamples}
    with timed(results, "fit"):
        analysis = analyse(runs, LawSettings(resamples=options.resamples, target_budgets=(1e14,)))
    made = Provenance(sweep="benchmark", created_at="2026-01-01", mlflow_url="http://127.0.0.1:5000")
    histories = curves(runs)
    with timed(results, "render"):
        page = render(runs, analysis, made, curves=histories)
    results["page_mb"] = len(page.encode()) / 1e6
    results["same_again"] = render(runs, analysis, made, curves=histories) == page
    print(
        "| runs | fit (s) | fit, CPU (s) | render (s) | render, CPU (s) | page (MB) | again the same bytes |"
    )
    print("|---|---|---|---|---|---|---|")
    numbers = [f"{results[k]:.1f}" for k in ("fit_s", "fit_cpu_s", "render_s", "render_cpu_s", "page_mb")]
    print(f"| {runs.height} | {' | '.join(numbers)} | {'yes' if results['same_again'] else 'NO'} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
