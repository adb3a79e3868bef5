"""Small models on one GPU: tokens/s of 1, 2, 4 and 8 trainings at once, in turns and through MPS.

    python -m benchmarks.training_packing --json rows.json [--time-limit 240]

Each training is a process, through Lightning's trainer and the training module as in a sweep: xLSTM (or
Transformer) of width 256 with 6 blocks, S=1024, bf16. One alone is measured with and without the compiler and
the recorded step; several at once with both. All of a row start their clocks together, and the row sums what
they did. `--quick`: tiny models in two processes on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_cases import OURS, VOCABULARY, Case
from benchmarks.training_step import write
from tasks.mps import shared_gpus

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 4.0
COUNTS = (1, 2, 4, 8)
VARIANTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "compiled, recorded": (("compile", True), ("cuda_graph", True)),
    "compiled": (("compile", True), ("cuda_graph", False)),
    "recorded": (("compile", False), ("cuda_graph", True)),
    "as written": (("compile", False), ("cuda_graph", False)),
}


class Training:
    """A process that trains whenever it is told to, for so many seconds."""

    def __init__(self, case: Case, environment: Mapping[str, str], log: Path) -> None:
        self.case = case
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_packing", "--worker", json.dumps(case.to_dict())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    def heard(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = (self.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
            return {"error": f"the process ended with code {self.process.wait()}: {last[:160]}"}
        return dict(json.loads(line))

    def go(self, seconds: float) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def worker(case: Case) -> None:
    """Train, and after a warm-up wait before each stretch for the word to go."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from lightning.pytorch import Callback

    from benchmarks import training_worker

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    class Stretches(Callback):
        left = training_worker.WARM_UP + 2
        until: float | None = None
        start = 0.0
        steps = 0

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if self.until is None:
                self.left -= 1
                if self.left > 0:
                    return
                training_worker.sync()
                self.say({"ready": True})
            elif time.perf_counter() < self.until:
                self.steps += 1
                if self.steps % 4 == 0:  # at most a few steps ahead of the device: the clock is the host's
                    training_worker.sync()
                return
            else:
                training_worker.sync()
                seconds = time.perf_counter() - self.start
                self.say(
                    {
                        "tokens_per_s": (self.steps + 1) * case.tokens / seconds,
                        "loss": module.step_loss.item(),
                    }
                )
            line = sys.stdin.readline()
            if not line:
                trainer.should_stop = True
                return
            self.steps = 0
            self.start = time.perf_counter()
            self.until = self.start + float(line)

        def say(self, row: Row) -> None:
            row["gib"] = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None
            print(json.dumps(row), file=answers, flush=True)

    training_worker.train_ours(case.to_dict(), 10**9, clock=Stretches())


def together(trainings: Sequence[Training]) -> Row:
    for training in trainings:
        training.go(SECONDS)
    heard = [training.heard() for training in trainings]
    if errors := [row["error"] for row in heard if "error" in row]:
        return {"error": errors[0]}
    return {"tokens_per_s": sum(r["tokens_per_s"] for r in heard), "each": [r["tokens_per_s"] for r in heard],
            "gib_each": heard[0]["gib"], "loss": heard[0]["loss"]}  # fmt: skip


def small(vocabulary: int, options: tuple[tuple[str, Any], ...], sequences: int, arch: str = OURS[0]) -> Case:
    return Case(
        contender=arch,
        size="small",
        context_length=1024,
        sequences=sequences,
        vocabulary=vocabulary,
        options=options,
    )


def measure(options: argparse.Namespace) -> None:
    begun = time.monotonic()
    rows: list[Row] = []

    def left() -> float:
        return float(options.time_limit) - (time.monotonic() - begun)

    def keep(case: Case, how: str, count: int, row: Row) -> None:
        rows.append({"arch": case.contender, "vocabulary": case.vocabulary, "tokens_a_step": case.tokens,
                     "how": how, "processes": count, **row})  # fmt: skip
        said = (
            row.get("error") or f"{row['tokens_per_s']:,.0f} | {row['gib_each'] or 0:.1f} | {row['loss']:.2f}"
        )
        print(
            f"| {case.contender} | {case.vocabulary} | {case.tokens} | {how} | {count} | {said} |", flush=True
        )
        if options.json:
            write(options.json, rows)

    print("| model | vocabulary | tokens a step | how | processes | tokens/s in total | GiB each | loss |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)

        def started(cases: Sequence[Case], environment: Mapping[str, str]) -> list[Training]:
            trainings = [Training(c, environment, folder / f"{id(c)}-{i}.log") for i, c in enumerate(cases)]
            for training in trainings:
                stack.callback(training.end)
            return trainings

        if options.quick:
            case = Case(contender=OURS[1], size="quick", context_length=64, sequences=4, vocabulary=256,
                        options=(("compile", False), ("cuda_graph", False)))  # fmt: skip
            pair = started([case] * 2, {})
            states = [training.heard() for training in pair]
            keep(case, "in turns", 2, next((r for r in states if "error" in r), {}) or together(pair))
            return
        # 1. One at a time, by what makes it fast; the compiler's cache is full for those that follow.
        best = VARIANTS["compiled, recorded"]
        alone = {
            **{small(VOCABULARY, switches, 16): name for name, switches in VARIANTS.items()},
            small(VOCABULARY, best, 32): "compiled, recorded",
            small(8192, best, 16): "compiled, recorded",
            small(VOCABULARY, best, 16, OURS[1]): "compiled, recorded",
        }
        trainings = started(list(alone), {})
        states = [training.heard() for training in trainings]  # compiled, all of them, before one is measured
        for case, training, ready in zip(alone, trainings, states, strict=True):
            keep(case, alone[case], 1, ready if "error" in ready else together([training]))
            training.end()
        # 2. Several at once, in turns and through MPS: the same processes, so many of them at work.
        services: list[AbstractContextManager[Mapping[str, str]]]
        services = [nullcontext({}), shared_gpus(folder / "mps")]
        for service in services:
            with service as variables:
                how = "MPS" if variables else "in turns"
                for vocabulary in (VOCABULARY, 8192):
                    if left() < 30:
                        return
                    case = small(vocabulary, VARIANTS["compiled, recorded"], 16)
                    pool = started([case] * COUNTS[-1], variables)
                    states = [training.heard() for training in pool]
                    well = [t for t, row in zip(pool, states, strict=True) if "error" not in row]
                    for count in COUNTS[1:] if vocabulary == VOCABULARY else (4, 8):
                        error = next(
                            (row for row in states if "error" in row), {"error": "too few processes"}
                        )
                        keep(case, how, count, together(well[:count]) if len(well) >= count else error)
                    for training in pool:
                        training.end()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--time-limit", type=float, default=240.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        fields = json.loads(options.worker)
        worker(Case(**{**fields, "options": tuple((k, v) for k, v in fields["options"])}))
        return 0
    if not options.quick and not torch.cuda.is_available():
        print("training_packing: no GPU here; --quick runs on a CPU", file=sys.stderr)
        return 2
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
