"""TrainJob and RunResult: what goes into a training process and what comes out. Light: no torch here."""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlstm.run_spec import RunSpec, run_spec_from_dict
from xlstm.training.execution import Execution
from xlstm.training.failures import Failure
from xlstm.trunk import TrunkJob

TIME_IS_UP = signal.SIGXCPU
"""Ends a training at its time limit; SIGTERM ends it too and is recorded as such."""
NO_PROGRESS = signal.SIGUSR1
"""Ends a training that does not move; where it stands goes to its log."""
RESULT = "result.json"
PROGRESS = "progress.json"
SPEC = "spec.json"
ATTEMPT = "mlflow_run_id"
"""The MLflow run of the last attempt."""
UNSAID = "unsaid.json"
"""The result of an attempt whose end the tracker could not be told; whoever closes its MLflow run does."""
RANKS = "ranks"
"""Within a run's folder: what each of a training's processes said, where there are several."""
CHECKPOINT = Path("checkpoints") / "resume.ckpt"
"""Within a run's folder; there from the first interval until the run is finished."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A RunSpec, and all that a training needs and that does not determine its result."""

    spec: RunSpec
    data_folder: Path
    """A prepared corpus whose content hash is the spec's."""
    data_label: str | None = None
    """What people read of it; None: the spec's name."""
    run_dir: Path
    tracking_uri: str
    """An MLflow store that exists: fresh SQLite files are not made here, parallel runs would race."""
    experiment: str
    artifact_root: str | None = None
    """Where a new experiment keeps its artifacts; None leaves it to the store."""
    run_name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """Set on the MLflow run beside the trainer's own."""
    device: str = "cpu"
    """cpu or cuda:<index>."""
    peers: tuple[str, ...] = ()
    """Further devices of this host that train the run together with `device`, a process each."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What peers have of the model: a replica or a shard each."""
    threads: int = 1
    """Of each process."""
    micro_batch: int | None = None
    """Sequences that go through the model at once, a process; None for all of its own. See TrainingModule."""
    execution: Execution = field(default_factory=Execution)
    """Switches that change how fast and in how much memory it trains, and no result beyond rounding."""
    gpu_share: float = 1.0
    """Of the GPU's memory, where several trainings share it."""
    cache_folder: Path | None = None
    """Where compiled kernels and what was measured of the machine are kept; None: nowhere."""
    attempt: int = 1
    """Which attempt of its flow this is, for the record."""
    checkpoint_every_s: float = 60.0
    pause_at: float | None = None
    """Seconds since the epoch at which to leave a checkpoint and end, unless the last step was before."""
    keep_final_checkpoint: bool = False
    """Log the final weights as an artifact."""
    trunk: TrunkJob | None = None
    """Of a run whose first part others may share; None: it trains all of it by itself."""

    @property
    def devices(self) -> tuple[str, ...]:
        """All of them; the first process writes what there is to write."""
        return (self.device, *self.peers)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "TrainJob":
        fields = json.loads(text)
        return cls(
            **{
                **fields,
                "spec": run_spec_from_dict(fields["spec"]),
                "data_folder": Path(fields["data_folder"]),
                "run_dir": Path(fields["run_dir"]),
                "peers": tuple(fields["peers"]),
                "execution": Execution(**fields["execution"]),
                "cache_folder": None if fields["cache_folder"] is None else Path(fields["cache_folder"]),
                "trunk": None if fields["trunk"] is None else TrunkJob.from_dict(fields["trunk"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a training. The numbers are None where the run failed."""

    run_key: str
    status: Literal["finished", "failed"]
    error: str | None = None
    """Why it failed, one line that begins with the kind of the failure."""
    failure: Failure | None = None
    loss: float | None = None
    """Final loss on the held-out set, nats per token."""
    bpb: float | None = None
    train_loss: float | None = None
    """Mean over the last twentieth of the steps, nats per token."""
    epochs: float | None = None
    spent_flops: float | None = None
    """On the steps that this run trained itself: without those that it found done in its trunk."""
    wall_time_s: float | None = None
    """All attempts together, up to the checkpoint that each left."""
    step_time_s: float | None = None
    """Median, without validation and checkpoints."""
    tokens_per_s: float | None = None
    mfu: float | None = None
    """FLOPs by our accounting over the device's measured matrix peak; None on a CPU."""
    power_w: float | None = None
    """Mean of the GPU, by whoever used it; None where it is not measured."""
    memory_bytes: float | None = None
    """Peak: held by torch on a GPU, recorded steps and all, resident set of the process on a CPU."""
    device: str | None = None
    mlflow_run_id: str | None = None
    mlflow_experiment_id: str | None = None

    def metrics(self) -> dict[str, float]:
        """The numbers, named as the run table's columns."""
        return {k: v for k, v in asdict(self).items() if isinstance(v, float)}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunResult":
        fields: dict[str, Any] = json.loads(text)
        failure = fields.get("failure")
        return cls(**{**fields, "failure": None if failure is None else Failure(failure)})


def last_words(run_dir: Path, mlflow_run_id: str) -> tuple[Failure, str] | None:
    """Kind and reason of an attempt's end that the tracker was not told; None where there are none."""
    unsaid = run_dir / UNSAID
    if not unsaid.exists():
        return None
    said = RunResult.from_json(unsaid.read_text(encoding="utf-8"))
    if said.mlflow_run_id != mlflow_run_id or said.failure is None or said.error is None:
        return None
    return said.failure, said.error
