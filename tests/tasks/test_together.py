"""One run over several processes, for real over gloo: the losses of one, and every way to end and go on."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import copyfile

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from tasks.launcher import Launcher
from tests.tasks.rank_saboteur import RECORDED
from tests.xlstm.training_jobs import history, run_spec, tiny_corpus
from xlstm.config import MLSTMConfig, ModelConfig, TransformerConfig
from xlstm.data import Corpus
from xlstm.training.execution import Execution
from xlstm.training.failures import Failure
from xlstm.training.job import CHECKPOINT, PROGRESS, RANKS, RunResult, TrainJob

SABOTEUR = Path(__file__).with_name("rank_saboteur.py")
MLSTM = MLSTMConfig(vocab_size=256, d_model=16, num_blocks=2, num_heads=2, ffn_dim=32, head_dim_qk=4)
TRANSFORMER = TransformerConfig(vocab_size=256, d_model=16, num_blocks=2, num_heads=2, ffn_dim=32)
OURS = "ISOFLOP_TEST_TOGETHER"
"""In the environment of this process's trainings: another may run the same tests beside it."""
CLOSE = 3e-6
"""Relative difference of losses in float32 from those of one process: sums in another order, over 24 steps.
Measured: 2.3e-7 of the losses, 1.4e-6 of the gradient norm."""
KEYS = ("loss", "train_loss", "optimizer/grad_norm")
RECORDS = {"execution": Execution(cuda_graph=True), "tags": {"recorded": ""}}
"""Of a job whose steps are recorded; see the saboteur."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher((sys.executable, str(SABOTEUR)), {OURS: str(os.getpid())}) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    copyfile(mlflow_template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


class Trainings:
    """Jobs that differ in what is asked for, and what became of them."""

    def __init__(self, launcher: Launcher, corpus: Corpus, store: str, folder: Path) -> None:
        self.launcher = launcher
        self.corpus = corpus
        self.store = store
        self.folder = folder

    def job(
        self,
        name: str,
        model: ModelConfig = MLSTM,
        processes: int = 1,
        strategy: str = "ddp",
        *,
        precision: str = "fp32",
        **fields: object,
    ) -> TrainJob:
        spec = dataclasses.replace(run_spec(self.corpus), model=model, precision=precision)  # type: ignore[arg-type]
        return TrainJob(
            spec=spec,
            data_folder=self.corpus.folder,
            run_dir=self.folder / name,
            tracking_uri=self.store,
            experiment="together",
            artifact_root=(self.folder / "artifacts").as_uri(),
            run_name=name,
            peers=("cpu",) * (processes - 1),
            strategy=strategy,  # type: ignore[arg-type]
            **fields,  # type: ignore[arg-type]
        )

    def run(self, job: TrainJob, fault: str | None = None, hang_after_s: float = 600.0) -> RunResult:
        """`fault`: RANK:STEP:KIND."""
        if fault is not None:
            job = dataclasses.replace(job, tags={**job.tags, "fault": fault})
        return self.launcher.run(job, timeout_s=120, hang_after_s=hang_after_s)

    def finish(self, job: TrainJob) -> dict[str, list[tuple[int, float]]]:
        """The loss curves of a training that has to finish."""
        result = self.run(job)
        assert result.status == "finished", result.error
        return {key: history(job, result.mlflow_run_id or "", key) for key in KEYS}


@pytest.fixture
def trainings(launcher: Launcher, corpus: Corpus, store: str, tmp_path: Path) -> Trainings:
    return Trainings(launcher, corpus, store, tmp_path)


@pytest.fixture(scope="module")
def alone(
    launcher: Launcher, corpus: Corpus, store: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By architecture: the curves of one process."""
    trainings = Trainings(launcher, corpus, store, tmp_path_factory.mktemp("alone"))
    return {model.arch: trainings.finish(trainings.job(model.arch, model)) for model in (MLSTM, TRANSFORMER)}


def assert_close(found: dict[str, list[tuple[int, float]]], expected: dict[str, list]) -> None:
    for key in KEYS:
        assert [step for step, _ in found[key]] == [step for step, _ in expected[key]], key
        values = [value for _, value in expected[key]]
        assert [value for _, value in found[key]] == pytest.approx(values, rel=CLOSE), key


def processes_left() -> list[psutil.Process]:
    """Of trainings: children of a zygote, and theirs."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            ours = process.environ().get(OURS) == str(os.getpid())
            if ours and process.status() != "zombie" and process.ppid() != os.getpid():
                left.append(process)
    return left


def wait_until_none_is_left() -> None:
    deadline = time.monotonic() + 10
    while processes_left():
        assert time.monotonic() < deadline, processes_left()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("model", "processes", "strategy", "micro_batch"),
    [
        (MLSTM, 2, "ddp", None),
        (TRANSFORMER, 2, "fsdp", None),
        (TRANSFORMER, 3, "ddp", 1),  # shares of 1, 1 and 2 sequences, in parts
        (MLSTM, 4, "fsdp", None),
    ],
    ids=lambda value: getattr(value, "arch", str(value)),
)
def test_losses_are_those_of_one_process(
    trainings: Trainings,
    alone: dict[str, dict],
    model: ModelConfig,
    processes: int,
    strategy: str,
    micro_batch: int | None,
) -> None:
    job = trainings.job("several", model, processes, strategy, micro_batch=micro_batch)
    assert_close(trainings.finish(job), alone[model.arch])
    wait_until_none_is_left()


@pytest.mark.parametrize(
    ("model", "processes", "micro_batch"),
    [
        (MLSTM, 2, None),
        (TRANSFORMER, 3, 1),  # a part of weight 0 in two of the recordings
    ],
    ids=lambda value: getattr(value, "arch", str(value)),
)
def test_recorded_losses_are_those_of_one_process(
    trainings: Trainings, alone: dict[str, dict], model: ModelConfig, processes: int, micro_batch: int | None
) -> None:
    job = trainings.job("several", model, processes, micro_batch=micro_batch, **RECORDS)
    assert_close(trainings.finish(job), alone[model.arch])
    assert (job.run_dir / "log.txt").read_text().count(RECORDED) == processes


def test_sharded_parts_in_bfloat16_stay_near_one_process(trainings: Trainings) -> None:
    """bfloat16 has 8 bits: the same weights rounded, other sums of gradients."""
    one = trainings.finish(trainings.job("one", precision="bf16"))
    two = trainings.finish(trainings.job("two", MLSTM, 2, "fsdp", precision="bf16", micro_batch=1))
    for (_, a), (_, b) in zip(one["train_loss"], two["train_loss"], strict=True):
        assert b == pytest.approx(a, rel=2e-3)


@pytest.mark.parametrize(
    "chain",
    [
        [(2, "fsdp"), (4, "fsdp"), (2, "fsdp")],
        [(1, "ddp"), (2, "fsdp"), (1, "ddp")],
        [(2, "ddp"), (2, "fsdp"), (4, "ddp")],
    ],
    ids=["2-4-2", "1-2-1", "replicas-shards-replicas"],
)
def test_a_run_goes_on_with_another_number_of_processes(
    trainings: Trainings, alone: dict[str, dict], chain: list[tuple[int, str]]
) -> None:
    """Killed at steps 8 and 16, its last process each time, and nothing is trained twice."""
    for (processes, strategy), step in zip(chain, (8, 16, None), strict=True):
        job = trainings.job("run", TRANSFORMER, processes, strategy, checkpoint_every_s=0.0)
        if step is None:
            assert_close(trainings.finish(job), alone["transformer"])
            continue
        last = processes - 1
        result = trainings.run(job, f"{last}:{step}:kill")
        assert result.failure is Failure.KILLED
        who = "by SIGKILL" if processes == 1 else f"rank {last} of {processes} by SIGKILL"
        assert (result.error or "").startswith(f"killed: {who}")
        checkpoint = job.run_dir / CHECKPOINT
        assert checkpoint.is_dir() == (strategy == "fsdp")
        wait_until_none_is_left()
    assert not checkpoint.exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "ddp, recorded"])
def test_a_killed_run_goes_on_bit_identically(trainings: Trainings, strategy: str) -> None:
    strategy, *recorded = strategy.split(", ")
    how = RECORDS if recorded else {}
    whole = trainings.job("whole", MLSTM, 2, strategy, keep_final_checkpoint=True, **how)
    cut = dataclasses.replace(whole, run_dir=trainings.folder / "cut", checkpoint_every_s=0.0)
    uninterrupted = trainings.finish(whole)
    assert trainings.run(cut, "0:15:kill").failure is Failure.KILLED
    assert trainings.finish(cut) == uninterrupted
    weights = [torch.load(job.run_dir / "model" / "data" / "model.pt") for job in (whole, cut)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize(
    ("fault", "failure", "error"),
    [
        ("0:5:leave", Failure.CRASHED, "crashed: rank 0 of 2 ended with exit code 0 and without a result"),
        ("1:5:memory", Failure.OUT_OF_MEMORY, "out of memory: MemoryError: no message (rank 1 of 2)"),
        ("1:5:hang", Failure.HUNG, "hung: stopped as it made no progress"),
    ],
)
def test_the_failure_of_one_is_that_of_all(
    trainings: Trainings, fault: str, failure: Failure, error: str
) -> None:
    job = trainings.job("run", MLSTM, 2, "fsdp")
    result = trainings.run(job, fault, hang_after_s=10.0 if "hang" in fault else 600.0)
    assert (result.status, result.failure, result.error) == ("failed", failure, error)
    wait_until_none_is_left()
    client = MlflowClient(trainings.store)
    run = client.get_run((job.run_dir / "mlflow_run_id").read_text())
    assert run.info.status == "FAILED"
    assert run.data.tags["isoflop.failure"] == failure
    assert run.data.tags["isoflop.error"] == error
    assert run.data.tags["isoflop.devices"] == "2"
    if failure is Failure.HUNG:  # the stacks of its ranks are in the log
        assert "in _run" in (job.run_dir / "log.txt").read_text()


@pytest.mark.parametrize(
    ("number", "failure"), [(signal.SIGKILL, Failure.KILLED), (signal.SIGTERM, Failure.STOPPED)]
)
def test_nothing_outlives_the_process_that_answers(
    trainings: Trainings, number: signal.Signals, failure: Failure
) -> None:
    job = trainings.job("run", MLSTM, 2)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(trainings.run, job, "1:5:hang")
        deadline = time.monotonic() + 100
        while not (job.run_dir / RANKS / "1" / PROGRESS).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        left = processes_left()
        parents = {process.ppid() for process in left}
        (answering,) = [process for process in left if process.pid in parents]
        assert len(left) == 3
        answering.send_signal(number)
        assert running.result(timeout=30).failure is failure
    wait_until_none_is_left()
