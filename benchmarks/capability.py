"""Capability experiments of LSTM, Transformer and xLSTM, outside of any flow: for a bare machine with a GPU.

    python -m benchmarks.capability --profile gpu --json capability.json
    python -m benchmarks.capability --profile gpu --json capability.json --only parity search
    python -m benchmarks.capability --profile gpu --json capability.json --show [--html report.html]

The runs, their training and their measurements are those of `capability-suite/<profile>`, by the same run
keys; only Prefect and MLflow are left out. Several processes share the device, as these models are far too
small for it, through MPS where that is installed. Each run is a row when it ends and is in the file at once:
the same command goes on where it was cut, and one that failed is tried again. `--show` trains nothing. Exit
code 0: every run of the plan is finished; 1: some are not.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeps.capability.claims import claims
from sweeps.capability.plan import SuiteRun, plan_suite
from sweeps.capability.results import Outcome, Results, outcome_of
from sweeps.capability.spec import CapabilitySpec, TextSource, load_suite
from sweeps.capability.text_tables import claim_table, level_table, text_table
from tasks.mps import shared_gpus
from xlstm.capability.domains import prepare_domains
from xlstm.capability.text import Domain
from xlstm.run_spec import canonical_json

DATA = "capability-data"
"""Folder of the text, beside the results."""


def main() -> int:
    """The command."""
    options = _options()
    suite = load_suite(options.profile, dict(_override(text) for text in options.set))
    if options.only:
        kept = tuple(e for e in suite.experiments if e.name in options.only)
        unknown = set(options.only) - {e.name for e in kept}
        if unknown:
            known = ", ".join(e.name for e in suite.experiments)
            print(f"--only {sorted(unknown)[0]}: no such experiment; use some of {known}", file=sys.stderr)
            return 2
        suite = CapabilitySpec(**{**vars(suite), "experiments": kept})
    home = options.data or options.json.parent / DATA
    kept_file = Kept(options.json, suite, options.profile)
    if not options.show:
        kept_file.domains = {e.name: _domains(e.task, home) for e in suite.experiments}
    runs = plan_suite(suite, kept_file.domains)
    left = [run for run in runs if not kept_file.has(run.spec.run_key)]
    expected = sum(run.estimated_s for run in left)
    print(f"{len(runs)} runs, {len(left)} to train, {expected:.0f} s of steps as planned", flush=True)
    if left and not options.show:
        print(HEADER, flush=True)
        train(left, home, kept_file, options)
    outcomes = tuple(kept_file.outcome(run) for run in runs)
    show(suite, outcomes)
    if options.html:
        write_page(suite, outcomes, options)
    return 0 if all(outcome.is_finished for outcome in outcomes) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="gpu", help="a shipped profile, or the path of a YAML file")
    parser.add_argument("--json", type=Path, required=True, help="results, kept and gone on with")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:INDEX")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes at once; 0: 6 on a GPU, else the cores"
    )
    parser.add_argument(
        "--no-graph", action="store_true", help="on a GPU: launch every kernel, record no steps"
    )
    parser.add_argument("--time-limit", type=float, default=1e9, metavar="S", help="start no run after it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the profile")
    parser.add_argument("--data", type=Path, help="folder of the text; beside the results by default")
    parser.add_argument("--show", action="store_true", help="train nothing: tables of what is there")
    parser.add_argument("--html", type=Path, help="the page of the flow, from these results")
    return parser.parse_args()


def _override(text: str) -> tuple[str, Any]:
    import yaml

    key, _, value = text.partition("=")
    return key, yaml.safe_load(value)


def _domains(task: object, home: Path) -> tuple[Domain, ...]:
    if not isinstance(task, TextSource):
        return ()
    return prepare_domains(home, task.domains, task.max_bytes, task.least_held_out)


class Kept:
    """The file of results: rewritten whole after every run, so that a cut loses none that ended."""

    def __init__(self, path: Path, suite: CapabilitySpec, profile: str) -> None:
        self.path = path
        about = {"suite": suite.name, "profile": profile, "python": platform.python_version()}
        self.found: dict[str, Any] = {"about": about, "domains": {}, "runs": {}}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.found |= {key: before[key] for key in ("domains", "runs")}

    @property
    def domains(self) -> dict[str, tuple[Domain, ...]]:
        """The text that the runs read, by experiment: tables need its hashes, and not the text."""
        return {e: tuple(Domain(**d) for d in found) for e, found in self.found["domains"].items()}

    @domains.setter
    def domains(self, found: dict[str, tuple[Domain, ...]]) -> None:
        here = {experiment: [asdict(d) for d in domains] for experiment, domains in found.items()}
        self.found["domains"] |= here

    def has(self, run_key: str) -> bool:
        """Whether a finished run is there."""
        return bool(self.found["runs"].get(run_key, {}).get("measures"))

    def add(self, run: SuiteRun, found: dict[str, Any]) -> None:
        """Keep what came of a run."""
        named = {"name": run.name, "experiment": run.experiment, "arch": run.arch, "N": run.N}
        self.found["runs"][run.spec.run_key] = {**named, **found, "spec": canonical_json(run.spec)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)

    def outcome(self, run: SuiteRun) -> Outcome:
        """Of a planned run."""
        row = self.found["runs"].get(run.spec.run_key)
        if row is None:
            return outcome_of(run, None, status="missing", error="not trained")
        if not row.get("measures"):
            return outcome_of(run, None, status="failed", error=row["error"])
        timing = {key: row[key] for key in ("wall_time_s", "step_time_s", "device")}
        return outcome_of(run, row["measures"], **timing)


HEADER = """
| run | N | loss | accuracy | measured | ms a step | s | recorded |
|---|---|---|---|---|---|---|---|"""


def train(runs: Sequence[SuiteRun], home: Path, kept: Kept, options: argparse.Namespace) -> None:
    """Every run in one of several processes; a row as each ends.

    A compiler or a kernel may take its whole process along, and the pool with it. What is left then goes
    one by one until the culprit is found, which is a failed run, and goes on together.
    """
    device = _device(options.device)
    service: AbstractContextManager[Mapping[str, str]] = nullcontext({})
    if device.startswith("cuda"):
        service = shared_gpus(options.json.parent / "mps")
    with service as variables:
        os.environ.update(variables)
        _train_in_pools(runs, home, kept, options, device)


def _train_in_pools(
    runs: Sequence[SuiteRun], home: Path, kept: Kept, options: argparse.Namespace, device: str
) -> None:
    workers = options.workers or (6 if device.startswith("cuda") else len(os.sched_getaffinity(0)))
    deadline = time.time() + options.time_limit
    context = multiprocessing.get_context("spawn")
    left, alone = list(runs), False
    while left:
        at_once = 1 if alone else min(workers, len(left))
        with ProcessPoolExecutor(at_once, mp_context=context) as pool:
            jobs = ((run, home, device, not options.no_graph, deadline) for run in left)
            futures = [pool.submit(_train_one, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    run, found = future.result()
                    left.remove(run)
                    if found is not None:  # else the time was up before its turn
                        kept.add(run, found)
                        print(_row(run, found), flush=True)
            except BrokenProcessPool:
                if alone:
                    culprit, found = left.pop(0), {"error": "its process died", "device": device}
                    kept.add(culprit, found)
                    print(_row(culprit, found), flush=True)
                alone = not alone


def _device(asked: str) -> str:
    import torch

    if asked != "auto":
        return asked
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _train_one(job: tuple[SuiteRun, Path, str, bool, float]) -> tuple[SuiteRun, dict[str, Any] | None]:
    """In a process of the pool. A run that fails is a row that says so, and no end of the others."""
    run, home, name, record, deadline = job
    if time.time() > deadline:
        return run, None
    try:
        return run, _measured(run, home, name, record)
    except Exception as error:
        last = traceback.format_exc().strip().splitlines()
        return run, {"error": f"{type(error).__name__}: {error}"[:400], "trace": last[-6:], "device": name}


def _measured(run: SuiteRun, home: Path, name: str, record: bool) -> dict[str, Any]:
    import torch

    from xlstm.capability.material import open_material
    from xlstm.capability.measure import measure
    from xlstm.capability.training import Training

    torch.set_num_threads(1)
    device = torch.device(name)
    on_gpu = device.type == "cuda"
    started = time.perf_counter()
    training = Training(run.spec, open_material(run.spec, home), device, record=record and on_gpu)
    losses = [training.advance()]  # compiles and records
    first_s = time.perf_counter() - started
    losses += list(_steps(training))
    if on_gpu:
        torch.cuda.synchronize(device)
    trained_s = time.perf_counter() - started
    history = torch.stack(losses).tolist()
    measures = measure(training.model, training.material, device, context=training.context)
    return {
        "measures": measures,
        "train_loss": history[-1],
        "history": [round(x, 4) for x in history[:: max(1, len(history) // 40)]],
        "wall_time_s": time.perf_counter() - started,
        "first_step_s": first_s,
        "step_time_s": (trained_s - first_s) / max(1, run.spec.steps - 1),
        "device": torch.cuda.get_device_name(device) if on_gpu else name,
        "recorded": record and on_gpu,
        "torch": torch.__version__,
    }


def _steps(training: Any) -> Iterator[Any]:
    while not training.is_over:
        yield training.advance()


def _row(run: SuiteRun, found: dict[str, Any]) -> str:
    if "measures" not in found:
        return f"| {run.name} | {run.N:,} | failed: {found['error']} | | | | | |"
    measures = found["measures"]
    levels = [f"{k.partition('/')[2]}: {v:.2f}" for k, v in measures.items() if k.startswith("accuracy/")]
    levels += [f"{k.partition('/')[2]}: {v:.3f}" for k, v in measures.items() if k.startswith("domain_loss/")]
    timing = f"{1e3 * found['step_time_s']:.2f} | {found['wall_time_s']:.1f}"
    said = "yes" if found["recorded"] else "no"
    loss = f"{measures['loss']:.4f} | {measures['accuracy']:.3f}"
    return f"| {run.name} | {run.N:,} | {loss} | {', '.join(levels)} | {timing} | {said} |"


def show(suite: CapabilitySpec, outcomes: tuple[Outcome, ...]) -> None:
    """Tables of means and intervals, and how the claims stand."""
    results = Results(outcomes=outcomes, level=suite.level)
    for experiment in suite.experiments:
        if results.archs(experiment.name):
            make = text_table if isinstance(experiment.task, TextSource) else level_table
            print(f"\n### {experiment.name}\n\n{make(experiment, results)}")
    print(f"\n### Claims\n\n{claim_table(claims(suite, results))}")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(f"failed: {outcome.experiment} {outcome.arch} seed {outcome.seed}: {outcome.error}")


def write_page(suite: CapabilitySpec, outcomes: tuple[Outcome, ...], options: argparse.Namespace) -> None:
    """The flow's page; needs the packages of the reports."""
    from reports.capability import render
    from reports.provenance import Provenance

    made = Provenance(
        sweep=suite.name,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        source=f"{options.json.name}",
        device=", ".join(sorted({o.device for o in outcomes if o.device})),
        regenerate=" ".join(["python -m benchmarks.capability", *sys.argv[1:]]),
    )
    options.html.write_text(
        render(suite, Results(outcomes=outcomes, level=suite.level), made), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
