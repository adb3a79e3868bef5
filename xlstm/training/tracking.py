"""The MLflow run of a training: opened with all that determines it, fed in batches, ended with the truth."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from xlstm.run_spec import canonical_json
from xlstm.training.failures import Failure, classify, describe
from xlstm.training.files import write_atomically
from xlstm.training.job import ATTEMPT, UNSAID, TrainJob, last_words
from xlstm.training.optimizer import learning_rate

T = TypeVar("T")

FLUSH_EVERY_S = 15.0
"""A transaction costs tens of milliseconds on SQLite, so metrics wait for company."""
PATIENCE_S = 60.0
"""A store that does not answer for longer than this fails the run; meanwhile training goes on."""
MAX_BATCH = 1000
"""MLflow's limit of metrics in one request."""


class Tracker:
    """Buffers metrics. Every attempt at a run is an MLflow run of its own, with the whole history."""

    def __init__(self, job: TrainJob, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.job = job
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._metrics: list[Metric] = []
        self._sent = 0
        self._last_flush = time.monotonic()
        self._last_answer = time.monotonic()

    @classmethod
    def start(cls, job: TrainJob, tags: dict[str, str]) -> "Tracker":
        """Open the run: every RunSpec field as a parameter, `tags` and the job's own.

        An earlier attempt that died without a word is closed first; the caller holds the run's lock.
        """
        client = MlflowClient(job.tracking_uri)
        experiment_id = insist(lambda: _experiment(client, job))
        close_dead_attempt(job, "KILLED", Failure.KILLED, "its process died before it could say why")
        own = {
            "isoflop.run_key": job.spec.run_key,
            "isoflop.run_name": job.run_name,
            "isoflop.arch": job.spec.model.arch,
            "isoflop.spec": canonical_json(job.spec),
            "isoflop.data_hash": job.spec.data.content_hash,
            "isoflop.attempt": str(job.attempt),
            "isoflop.micro_batch": str(job.micro_batch or job.spec.batch_size),
            "mlflow.note.content": _description(job),
        }
        tags = {**own, **tags, **job.tags}
        run = insist(lambda: client.create_run(experiment_id, run_name=job.run_name, tags=tags))
        write_atomically(job.run_dir / ATTEMPT, run.info.run_id)
        parameters = [Param(key, str(value)) for key, value in flatten(asdict(job.spec)).items()]
        insist(lambda: client.log_batch(run.info.run_id, params=parameters))
        insist(lambda: _log_data_set(client, run.info.run_id, _data_set(job)))
        return cls(job, client, run.info.run_id, experiment_id)

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.job.spec.steps, self.job.spec.optimizer)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add to the history; it is written when enough has gathered."""
        now = time.time_ns() // 1_000_000
        self._metrics += [Metric(key, value, now, step) for key, value in metrics.items()]
        if time.monotonic() - self._last_flush >= FLUSH_EVERY_S:
            self._try_to_flush()

    def flush(self) -> None:
        """Write what has gathered."""
        while self._sent < len(self._metrics):
            batch = self._metrics[self._sent : self._sent + MAX_BATCH]
            self.client.log_batch(self.run_id, metrics=batch)
            self._sent += len(batch)
        self._last_flush = self._last_answer = time.monotonic()

    def _try_to_flush(self) -> None:
        """A store that is away gets the same metrics later; the error, once patience is at its end."""
        try:
            self.flush()
        except Exception as error:
            impatient = time.monotonic() - self._last_answer > PATIENCE_S
            if classify(error) is not Failure.DATABASE_LOST or impatient:
                raise
            self._last_flush = time.monotonic()

    def history(self) -> list[list[Any]]:
        """All metrics of this run so far, for a checkpoint."""
        return [[m.key, m.value, m.timestamp, m.step] for m in self._metrics]

    def restore(self, history: list[list[Any]]) -> None:
        """Begin with the history of an earlier attempt."""
        self._metrics = [Metric(*row) for row in history] + self._metrics[self._sent :]
        self._sent = 0

    def finish(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """Write the final numbers and files, and only then say FINISHED."""
        # The newest point of the highest step is the run's value: a millisecond makes it the final one.
        last = max((m.timestamp for m in self._metrics), default=0) + 1
        self._metrics += [Metric(key, value, last, self.job.spec.steps) for key, value in metrics.items()]
        insist(self.flush)
        for path in artifacts:
            insist(lambda path=path: self.client.log_artifact(self.run_id, str(path)))  # type: ignore[misc]
        insist(lambda: self.client.set_terminated(self.run_id, "FINISHED"))

    def fail(self, failure: Failure, error: str) -> None:
        """Keep the history, name the kind and the reason, say FAILED."""
        tags = [RunTag("isoflop.failure", failure), RunTag("isoflop.error", error)]
        self.client.log_batch(self.run_id, tags=tags)
        self.flush()
        self.client.set_terminated(self.run_id, "FAILED")


class Silent(Tracker):
    """For the processes of a training beside its first, which alone tells the store. Keeps no history."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.run_id = self.experiment_id = ""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def history(self) -> list[list[Any]]:
        return []

    def restore(self, history: list[list[Any]]) -> None:
        pass

    def finish(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        pass


def insist(call: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The answer of the store; asks again, with growing pauses, while it is away and patience lasts."""
    deadline = time.monotonic() + patience_s
    pause = 0.5
    while True:
        try:
            return call()
        except Exception as error:
            if classify(error) is not Failure.DATABASE_LOST or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause *= 2


def _data_set(job: TrainJob) -> DatasetInput:
    """The corpus, as MLflow lists it: by its name and the start of its content hash."""
    data = job.spec.data
    source = json.dumps({"content_hash": data.content_hash, "tokenizer": data.tokenizer})
    profile = json.dumps({"train_tokens": job.spec.tokens, "validation_tokens": job.spec.validation_tokens})
    corpus = Dataset(
        name=job.data_label or data.name,
        digest=data.content_hash[:36],
        source_type="isoflop",
        source=source,
        profile=profile,
    )
    return DatasetInput(corpus, tags=[InputTag("mlflow.data.context", "training")])


def _description(job: TrainJob) -> str:
    """What the run is, in a line of Markdown."""
    spec, model = job.spec, job.spec.model
    shape = f"{model.arch}, {model.num_blocks} blocks of width {model.d_model}"
    label = job.data_label or spec.data.name
    return f"{shape}, context {spec.context_length}, {spec.tokens:,} tokens of {label}"


def _log_data_set(client: MlflowClient, run_id: str, data: DatasetInput) -> None:
    """Name the data of a run.

    MLflow looks for the data set and then inserts it, and trainings that begin at the
    same moment race: who comes second finds it there when it asks again.
    """
    try:
        client.log_inputs(run_id, datasets=[data])
    except MlflowException as error:
        if "unique" not in str(error).lower():
            raise
        client.log_inputs(run_id, datasets=[data])


def flatten(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _experiment(client: MlflowClient, job: TrainJob) -> str:
    found = client.get_experiment_by_name(job.experiment)
    if found is None:
        try:
            return client.create_experiment(job.experiment, job.artifact_root)
        except MlflowException:  # another run of the sweep was first
            found = client.get_experiment_by_name(job.experiment)
            if found is None:
                raise
    return found.experiment_id


def close_dead_attempt(job: TrainJob, status: str, failure: Failure, error: str) -> None:
    """End the MLflow run of the last attempt if it is still open; for the holder of the run's lock.

    What the attempt could not say itself goes before `failure` and `error`.
    """
    attempt = job.run_dir / ATTEMPT
    if not attempt.exists():
        return
    client = MlflowClient(job.tracking_uri)
    run_id = attempt.read_text()
    if insist(lambda: client.get_run(run_id)).info.status == "RUNNING":
        if said := last_words(job.run_dir, run_id):
            failure, error = said
        client.set_tag(run_id, "isoflop.failure", failure)
        client.set_tag(run_id, "isoflop.error", describe(failure, error))
        client.set_terminated(run_id, status)
    (job.run_dir / UNSAID).unlink(missing_ok=True)


def write_spec(job: TrainJob, path: Path) -> None:
    path.write_text(json.dumps(json.loads(canonical_json(job.spec)), indent=1, sort_keys=True) + "\n")
