"""One training over several GPUs, and many small ones over them.

    python -m benchmarks.multi_gpu --json rows.json [--part scaling|sweep] [--wheels FOLDER]
        [--strategies ddp fsdp] [--only WORD ...]
    python -m benchmarks.multi_gpu --quick        # on a CPU over gloo, that it works

`scaling`: 400M and 1.4B, xLSTM and Transformer, S=8192, bf16. Every GPU has the same work however many there
are (weak scaling): one GPU alone, the others idle; then all of 2, 4, 8 GPUs as replicas (DDP) and as shards
(FSDP), in the same processes. Efficiency: tokens/s a GPU over those of the one alone. Beside it, the largest
relative difference of the losses of the first steps from one GPU that trains on the same sequences in parts,
at a learning rate that lets the losses fall from the first step on: where they do not, rounding grows to
chaos. `--strategies` chooses between DDP and FSDP.

`sweep`: 40 small runs as a sweep trains them (ledger, launcher, MLflow), on one GPU, on two, on two with
kill -9 of the flow when half is done, and through Ray; and 16 of which the largest have both GPUs. See
multi_gpu_sweep. `--rows` chooses among them.
`--wheels`: a folder of wheels that the machine has not (pydantic, polars, mlflow and theirs; ray), unpacked
for it.

A row is printed and written to the file when it is there. NCCL's settings are left as the machine has them.
Exit code 1 where a case failed, 2 without a GPU.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import about
from benchmarks.training_cases import FAST, OURS, Case
from benchmarks.training_step import write
from xlstm.config import TransformerConfig
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.blocks import keep_compiled_code
from xlstm.training.job import RunResult, TrainJob
from xlstm.training.share import ALONE, Share
from xlstm.training.together import train_together

Row = dict[str, Any]
ROWS = "rows.jsonl"
STEPS = 10
COMPARED = 6
"""Steps whose losses are compared, from the first on."""
STRATEGIES = ("ddp", "fsdp")
LR = 3e-5
"""At ten times as much the Transformer of 1.4B turns rounding into 6e-2 over the compared steps."""
COLUMNS = ("model", "how", "GPUs", "tokens/s a GPU", "efficiency", "GiB a GPU", "max loss difference")


def cases() -> list[Case]:
    """By what a GPU has to do alone."""
    xlstm, transformer = OURS
    found = [
        Case(contender=xlstm, size="400M", context_length=8192, sequences=4),
        Case(contender=xlstm, size="1.4B", context_length=8192, sequences=2),
        Case(contender=transformer, size="400M", context_length=8192, sequences=4, options=FAST),
        Case(contender=transformer, size="1.4B", context_length=8192, sequences=2, options=FAST),
    ]
    return [replace(case, lr=LR) for case in found]


def quick() -> list[Case]:
    return [
        Case(contender=name, size="quick", context_length=64, sequences=2, vocabulary=256) for name in OURS
    ]


# In the processes of a training


def measure(job: TrainJob, share: Share) -> RunResult:
    """What each process does: its part of every row of a case; the first one writes them down."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job.threads)
    case = json.loads(job.tags["case"])
    case["options"] = tuple((key, value) for key, value in case["options"])
    alone = json.loads(job.tags["alone"])

    def keep(row: Row) -> None:
        if share.is_first:
            with (job.run_dir / ROWS).open("a") as file:
                file.write(json.dumps(row) + "\n")

    if alone and share.is_first:
        keep({"how": "one", "GPUs": 1, **timed(case, ALONE, "ddp")})
    share.agree(lambda: 1)  # the others idle until the first has measured
    if share.ranks > 1:
        together = {**case, "sequences": case["sequences"] * share.ranks}
        parts = {**together, "options": (*case["options"], ("micro_batch", case["sequences"]))}
        losses: list[float] = timed(parts, ALONE, "ddp", steps=0)["losses"] if share.is_first else []
        share.agree(lambda: 1)
        for strategy in json.loads(job.tags["strategies"]):
            row = timed(together, share, strategy)
            row["gib"] = share.largest(row["gib"] or 0.0)
            if share.is_first:
                pairs = zip(row["losses"], losses, strict=False)
                row["loss_difference"] = max(abs(a - b) / b for a, b in pairs)
            keep({"how": strategy, "GPUs": share.ranks, **row})
    return RunResult(run_key=job.spec.run_key, status="finished")


def timed(case: Row, share: Share, strategy: str, steps: int = STEPS) -> Row:
    """Tokens/s a GPU over `steps` steps after the warm-up, the losses of the first, the peak of memory."""
    from lightning.pytorch import Callback

    from benchmarks import training_worker as worker

    class Clock(Callback):
        start = seconds = 0.0
        losses: list[torch.Tensor] = []  # noqa: RUF012 (one instance)

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if len(self.losses) < COMPARED:
                self.losses = [*self.losses, module.step_loss]
            if trainer.global_step == worker.WARM_UP:
                worker.sync()
                share.agree(lambda: 1)
                self.start = time.perf_counter()
            if trainer.global_step == worker.WARM_UP + steps:
                worker.sync()
                share.agree(lambda: 1)
                self.seconds = time.perf_counter() - self.start

    clock = Clock()
    worker.fresh()
    trained = worker.train_ours(
        case, max(steps, COMPARED - worker.WARM_UP), clock=clock, share=share, strategy=strategy
    )
    tokens = case["sequences"] * case["context_length"] / share.ranks
    gib = torch.cuda.max_memory_reserved() / 2**30 if worker.ON_GPU else None
    row = {
        "tokens_per_s_a_gpu": tokens * steps / clock.seconds if steps else None,
        "losses": [loss.item() for loss in clock.losses],
        "gib": gib,
        "recorded": trained["recorded"],
    }
    worker.fresh()
    return row


# In the command's process


def job_of(
    case: Case, devices: list[str], folder: Path, alone: bool, strategies: Sequence[str] = STRATEGIES
) -> TrainJob:
    """What the processes of a case need to know; the spec says nothing here."""
    shape = TransformerConfig(vocab_size=8, d_model=8, num_blocks=1, num_heads=1, ffn_dim=8)
    spec = RunSpec(
        model=shape,
        data=DataSpec(name="", tokenizer="", content_hash=""),
        optimizer=OptimizerSpec(peak_lr=1e-3, warmup_steps=1, cooldown_steps=0),
        context_length=8,
        batch_size=1,
        steps=1,
        validation_tokens=8,
        validation_every=1,
        seed=0,
    )
    return TrainJob(
        spec=spec,
        data_folder=folder,
        run_dir=folder,
        tracking_uri="",
        experiment="",
        run_name=case.name,
        tags={
            "case": json.dumps(case.to_dict()),
            "alone": json.dumps(alone),
            "strategies": json.dumps(strategies),
        },
        device=devices[0],
        peers=tuple(devices[1:]),
    )


class Tail:
    """Hears the rows of a case as its processes write them."""

    def __init__(self, path: Path, hear: Callable[[Row], None]) -> None:
        self.path = path
        self.hear = hear
        self.heard = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._listen)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self._read()

    def _listen(self) -> None:
        while not self.over.wait(0.5):
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        for line in [line for line in lines if line.endswith("\n")][self.heard :]:
            self.heard += 1
            self.hear(json.loads(line))


class Report:
    """Rows, printed and on disk."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: Row = {
            **about("torch", "triton"),
            "gpus": torch.cuda.device_count(),
            "nccl": {key: value for key, value in os.environ.items() if key.startswith("NCCL_")},
            "scaling": [],
            "sweep": [],
        }

    def keep(self, part: str, row: Row) -> None:
        self.found[part].append(row)
        if self.path:
            write(self.path, self.found)


def scaling(options: argparse.Namespace, report: Report, left: Callable[[], float]) -> bool:
    """Every case on 1, 2, 4, 8 GPUs, as many as there are; whether all went well."""
    counts = [2] if options.quick else [2**k for k in range(1, 6) if 2**k <= torch.cuda.device_count()]
    kind = "cpu" if options.quick else "cuda"
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    well = True
    for case in quick() if options.quick else cases():
        if options.only and not any(word in case.name for word in options.only):
            continue
        alone: list[float] = []

        def hear(row: Row, case: Case = case, alone: list[float] = alone) -> None:
            speed = row["tokens_per_s_a_gpu"]
            if row["how"] == "one":
                alone.append(speed)
            row = {"model": case.name, **row, "efficiency": speed / alone[0] if alone else None}
            report.keep("scaling", row)
            print(
                f"| {case.name} | {row['how']} | {row['GPUs']} | {speed:,.0f}"
                f" | {row['efficiency'] or 0:.3f} | {row['gib'] or 0:.1f}"
                f" | {row.get('loss_difference', 0):.1e} |",
                flush=True,
            )

        for count in counts or [1]:
            with tempfile.TemporaryDirectory() as scratch:
                devices = [f"{kind}:{i}" if kind == "cuda" else kind for i in range(count)]
                first = count == (counts or [1])[0]
                job = job_of(case, devices, Path(scratch), alone=first, strategies=options.strategies)
                if left() < 45:
                    print(f"| {case.name} | not run: time limit |", flush=True)
                    well = False
                    continue
                try:
                    with Tail(job.run_dir / ROWS, hear):
                        train_together(job, measure)
                except Exception as error:
                    well = False
                    report.keep("scaling", {"model": case.name, "GPUs": count, "error": str(error)})
                    print(f"| {case.name} | {count} GPUs: {error} |", flush=True)
    return well


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("scaling", "sweep"), help="both without")
    parser.add_argument("--only", nargs="*", default=[], help="words of the names of cases")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument(
        "--rows", nargs="*", choices=("one", "two", "killed", "ray", "mixed"), help="of the sweep"
    )
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--time-limit", type=float, default=480.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        print("multi_gpu: no GPU here; --quick runs on a CPU", file=sys.stderr)
        return 2
    begun = time.monotonic()
    report = Report(options.json)

    def left() -> float:
        return float(options.time_limit) - (time.monotonic() - begun)

    well = True
    with tempfile.TemporaryDirectory() as cache:
        keep_compiled_code(Path(cache))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if options.part != "scaling":
            from benchmarks.multi_gpu_sweep import sweep

            well = sweep(options, lambda row: report.keep("sweep", row), left) and well
        if options.part != "sweep":
            well = scaling(options, report, left) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
