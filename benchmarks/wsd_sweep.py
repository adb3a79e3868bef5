"""The schedule wsd against cosine: what shared trunks save, and whether the fitted optima are the same.

    python -m benchmarks.wsd_sweep [--home FOLDER] [--archs transformer mlstm] [--json PATH]

Two sweeps of the same budgets, sizes, data and seed on real text (Python sources, bytes): each run by itself
with a cosine, and the runs of a size as branches of one trunk. Tiny models on the CPU, minutes on two free
cores; what is finished in --home is not trained again. Losses of the two differ where their schedules do: the
question is N*, D* and L* of the fits.
"""

import argparse
import json
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sweeps.gather import gather
from sweeps.laws import analyse
from sweeps.laws.types import Analysis, OptimumPrediction
from sweeps.plan import Plan
from sweeps.spec import SweepSpec
from sweeps.spec_files import parse_spec
from tasks.engines import place
from tasks.environment import enter
from tasks.preparation import plan_runs, prepare_data, save_plan
from tasks.state import State, open_state
from tasks.tracking_db import ensure_tracking_db
from tasks.training import Trainer

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"kind": "cosine", "warmup_tokens_per_parameter": 0.25, "cooldown_fraction": 0.1},
    "wsd": {"kind": "wsd", "warmup_tokens_per_parameter": 0.25, "cooldown_fraction": 0.2},
}
"""The warm-up is the same, so that the two differ in what follows it alone."""


def spec_of(schedule: str, archs: list[str]) -> SweepSpec:
    """One of the two sweeps: every size at every budget, so that each size has one trunk for all of them."""
    heads = {"mlstm": 1, "transformer": 2}
    fields = {
        "name": f"wsd-benchmark-{schedule}",
        "archs": archs,
        "context_lengths": [128],
        "budgets": [1e10, 3e10, 1e11],
        "ladder": {
            "shapes": [{"d_model": d, "num_blocks": 2, "num_heads": heads} for d in (8, 12, 16, 24, 32)],
            "ffn_multiple_of": 8,
        },
        "learning_rate": {"base": 0.014, "reference_width": 32, "exponent": 1.0, "maximum": 0.03},
        "batch": {"tokens": 1024},
        "schedule": SCHEDULES[schedule],
        "optimizer": {"grad_clip": 1.0},
        "data": {"source": "python", "tokenizer": "bytes", "max_bytes": 16_000_000},
        "validation": {"tokens": 65_536, "times": 1},
        "resources": {"device": "cpu", "flops_per_s": 4e10, "step_overhead_s": 0.011, "hang_after_s": 3600},
        "laws": {"resamples": 500, "target_budgets": [1e12]},
    }
    return parse_spec(fields, origin="benchmarks.wsd_sweep")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A sweep with its runs done."""

    plan: Plan
    runs: pl.DataFrame
    analysis: Analysis


def train(spec: SweepSpec, state: State) -> Trained:
    """Train what is not finished, as a sweep's flow does, and fit."""
    corpus = prepare_data(spec, state)
    plan = plan_runs(spec, corpus)
    save_plan(plan, corpus, state)
    there = place(spec.resources, state)
    with (
        Trainer(spec, state, corpus, there.room, launch=there.launch, runs=plan.runs) as trainer,
        ThreadPoolExecutor(there.at_once) as threads,
    ):
        for run, outcome in zip(plan.runs, threads.map(trainer.complete, plan.runs), strict=True):
            print(f"{spec.schedule.kind} {run.name}: {outcome.status} {outcome.error or ''}", flush=True)
    runs = gather(plan.table, state.tracking_uri)
    return Trained(plan=plan, runs=runs, analysis=analyse(runs, spec.law_settings()))


def compared(by_schedule: dict[str, Trained]) -> list[dict[str, Any]]:
    """One row an architecture, budget, method and quantity."""
    cosine, wsd = by_schedule["cosine"].analysis, by_schedule["wsd"].analysis
    rows = []
    for group in cosine.groups:
        (other,) = (g for g in wsd.groups if g.arch == group.arch)
        for optimum in group.optima:
            found = _same(other.optima, optimum)
            if found is None:
                continue
            for quantity in ("N", "D", "loss"):
                a, b = getattr(optimum, quantity), getattr(found, quantity)
                row = {"arch": group.arch, "budget": optimum.budget, "method": optimum.method, "of": quantity}
                rows.append({**row, "cosine": asdict(a), "wsd": asdict(b), "ratio": b.value / a.value})
        for quantity in group.power_laws.keys() & other.power_laws.keys() & {"N"}:
            a, b = group.power_laws[quantity].exponent, other.power_laws[quantity].exponent
            row = {"arch": group.arch, "budget": None, "method": "isoflop parabolas", "of": "exponent of N*"}
            rows.append({**row, "cosine": asdict(a), "wsd": asdict(b), "ratio": b.value / a.value})
    return rows


def _same(optima: tuple[OptimumPrediction, ...], wanted: OptimumPrediction) -> OptimumPrediction | None:
    found = (o for o in optima if o.method == wanted.method and math.isclose(o.budget, wanted.budget))
    return next(found, None)


def tables(by_schedule: dict[str, Trained]) -> str:
    """Markdown: what each sweep cost, and the optima side by side."""
    lines = [
        "| schedule | runs | FLOPs of the runs by themselves | FLOPs spent | saved | seconds of all runs |",
        "|---|---|---|---|---|---|",
    ]
    for name, done in by_schedule.items():
        alone, spent = float(done.runs["train_flops"].sum()), float(done.runs["spent_flops"].sum())
        finished = done.runs.filter(pl.col("status") == "finished").height
        saved, seconds = 1 - spent / alone, float(done.runs["wall_time_s"].sum())
        lines.append(f"| {name} | {finished} | {alone:.4g} | {spent:.4g} | {saved:.1%} | {seconds:.0f} |")
    lines += [
        "",
        "| arch | budget | method | | cosine | wsd | wsd / cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in compared(by_schedule):
        budget = "" if row["budget"] is None else f"{row['budget']:.3g}"
        cells = [_cell(row[name]) for name in ("cosine", "wsd")]
        lines.append(
            f"| {row['arch']} | {budget} | {row['method']} | {row['of']} | {cells[0]} | {cells[1]} |"
            f" {row['ratio']:.3f} |"
        )
    return "\n".join(lines)


def _cell(value: dict[str, Any]) -> str:
    span = f" ({value['low']:.4g} to {value['high']:.4g})" if math.isfinite(value["low"]) else ""
    return f"{value['value']:.4g}{span}"


def main() -> None:
    """Both sweeps, and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--home", type=Path, help="a state folder to keep the runs in")
    parser.add_argument("--archs", nargs="+", default=["transformer", "mlstm"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        state = open_state(options.home or Path(scratch) / "state")
        enter(state)
        ensure_tracking_db(state)
        by_schedule = {name: train(spec_of(name, options.archs), state) for name in SCHEDULES}
    print(tables(by_schedule))
    if options.json:
        kept = ["arch", "budget", "N", "D", "train_flops", "spent_flops", "loss", "steps", "wall_time_s"]
        runs = {name: done.runs.select(kept).to_dicts() for name, done in by_schedule.items()}
        options.json.write_text(json.dumps({"optima": compared(by_schedule), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
