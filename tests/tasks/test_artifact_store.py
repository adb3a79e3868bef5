"""Artifacts in a bucket that speaks S3: a real sweep, a kill, and what is refused before anything trains.

The store is moto's server, which speaks the protocol over HTTP and lets every key in. $ISOFLOP_TEST_S3 is
the address of another, for the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the sweep by the command,
which takes minutes, wants it set, to `moto` at least.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import yaml

from sweeps.plan import PlannedRun
from tasks import preparation, services, tracking
from tasks.artifact_store import MARKER, artifact_store_fault
from tasks.engines import place
from tasks.state import State
from tasks.training import Hearing, Trainer
from tests.tasks.command import (
    CHECKPOINTED,
    Isoflop,
    command_lines,
    files_with,
    is_resumable,
    resumed,
    tiny_sweep,
)
from xlstm.training.failures import Failure, classify

boto3 = pytest.importorskip("boto3", reason="needs the extra s3: pip install 'isoflop[s3]'")
ELSEWHERE = os.environ.get("ISOFLOP_TEST_S3", "")
if ELSEWHERE in ("", "moto"):
    pytest.importorskip(
        "moto", reason="needs a store: pip install 'moto[s3]', or name one in ISOFLOP_TEST_S3"
    )

BUCKET = "isoflop-tests"
KEY, SECRET = "AKIAISOFLOPTESTS", "hunter2hunter2hunter2/secret+of+s3"


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """A store with an empty bucket, as the environment that leads to it."""
    there = {
        "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", KEY),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", SECRET),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ISOFLOP_ARTIFACTS": f"s3://{BUCKET}/sweeps",
    }
    if ELSEWHERE not in ("", "moto"):
        there["MLFLOW_S3_ENDPOINT_URL"] = ELSEWHERE
        yield _with_bucket(there)
        return
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        there["MLFLOW_S3_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        try:
            yield _with_bucket(there)
        finally:
            server.terminate()


def _with_bucket(settings: dict[str, str]) -> dict[str, str]:
    deadline = time.monotonic() + 120
    while not services.answers(settings["MLFLOW_S3_ENDPOINT_URL"]):
        assert time.monotonic() < deadline, "the store does not answer"
        time.sleep(0.1)
    _client(settings).create_bucket(Bucket=BUCKET)
    return settings


def _client(settings: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=settings["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


@pytest.fixture
def there(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same, for this process."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


class Killer(Hearing):
    """Kills the first training that has left a point to resume from."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.retries: list[str] = []

    def started(self, run: PlannedRun) -> None:
        if not self.retries:
            threading.Thread(target=self._kill, args=(self.state.run_dir(run.run_key),), daemon=True).start()

    def retried(self, run: PlannedRun, attempt: int, error: str) -> None:
        self.retries.append(error)

    def _kill(self, folder: Path) -> None:
        while not is_resumable(folder):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/fd/1") == str(folder / "log.txt"):
                    process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_that_was_killed_leaves_its_model_in_the_bucket(
    there: dict[str, str], tracked: State, tmp_path: Path
) -> None:
    """And the report beside it; both are read back through MLflow."""
    resources = {"checkpoint_every_s": 0.05, "keep_final_checkpoint": True, "timeout_s": 600}
    spec_file = tmp_path / "spec.yaml"
    spec_file.write_text(yaml.safe_dump(tiny_sweep("trained", budgets=[2e9], resources=resources)))
    spec = preparation.read_spec(spec_file)
    corpus = preparation.prepare_data(spec, tracked)
    plan = preparation.plan_runs(spec, corpus)
    killer, here = Killer(tracked), place(spec.resources, tracked)
    with Trainer(spec, tracked, corpus, here.room, launch=here.launch, hearing=killer) as trainer:
        outcome = trainer.complete(plan.runs[0])
    assert outcome.status == "finished"
    assert [error.split(":")[0] for error in killer.retries] == ["killed"]
    assert resumed(tracked.tracking_uri) == [plan.runs[0].name]
    assert outcome.mlflow_run_id is not None
    _scores_tokens(tracked.tracking_uri, outcome.mlflow_run_id)

    report = tmp_path / "report.html"
    report.write_text("found")
    run_id = tracking.log_report(tracked, tracking.ensure_experiment(tracked, "trained"), "trained", [report])
    client = tracking.client(tracked.tracking_uri)
    (tmp_path / "read").mkdir()
    read = client.download_artifacts(run_id, "report.html", str(tmp_path / "read"))
    assert Path(read).read_text() == "found"
    kept = {entry["Key"] for entry in _client(there).list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert f"sweeps/trained/{run_id}/artifacts/report.html" in kept
    assert f"sweeps/trained/{outcome.mlflow_run_id}/artifacts/model/data/model.pt" in kept
    assert list(tracked.artifacts.iterdir()) == []
    told = [
        path for path in tracked.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert told == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not ELSEWHERE, reason="minutes: ISOFLOP_TEST_S3=moto, or a store's address, runs it")
def test_a_sweep_keeps_its_artifacts_in_a_bucket(there: dict[str, str], tmp_path: Path) -> None:
    """Killed in the middle and started again; then report and models are read from the store alone."""
    resources = {**CHECKPOINTED, "keep_final_checkpoint": True}
    isoflop = Isoflop(tmp_path, tiny_sweep("bucket", budgets=[1e8, 2e9], resources=resources), there)
    secret = there["AWS_SECRET_ACCESS_KEY"]
    try:
        with isoflop.sweeping():
            isoflop.kill_flow()
        done = isoflop.sweep()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "6 of 6 runs finished" in done.stdout
        examined = isoflop("doctor")
        assert f"s3://{BUCKET}/sweeps takes them" in examined.stdout, examined.stdout
        endpoints = services.running_endpoints(isoflop.state)
        assert endpoints is not None
        services.wait_for_mlflow(isoflop.state, endpoints)
        assert secret not in command_lines()
        uri = isoflop.state.tracking_uri
        address = f"{endpoints.mlflow_ui}/get-artifact?path=report.html&run_uuid={_report_run(uri)}"
        with urllib.request.urlopen(address, timeout=60) as reply:
            assert reply.read() == isoflop.report.read_bytes()
    finally:
        isoflop("down", "--force")

    assert resumed(uri), "no run went on from its checkpoint"
    assert [path for path in (isoflop.home / "artifacts").rglob("*") if path.is_file()] == []
    runs = pl.read_parquet(isoflop.home / "sweeps" / "bucket" / "runs.parquet")
    assert runs["status"].to_list() == ["finished"] * 6
    listed = _client(there).list_objects_v2(Bucket=BUCKET, Prefix="sweeps/")["Contents"]
    kept = {entry["Key"] for entry in listed}
    assert f"sweeps/{MARKER}" in kept
    for run_id in runs["mlflow_run_id"]:
        folder = f"sweeps/bucket/{run_id}/artifacts"
        assert {f"{folder}/spec.json", f"{folder}/model/MLmodel", f"{folder}/model/data/model.pt"} <= kept
    _scores_tokens(uri, runs["mlflow_run_id"][0])
    assert files_with(secret, isoflop.home) == []
    assert secret not in done.stdout + done.stderr + examined.stdout + examined.stderr


def _report_run(uri: str) -> str:
    client = tracking.client(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{tracking.REPORT}` = 'bucket'")
    return str(run.info.run_id)


def _scores_tokens(uri: str, run_id: str) -> None:
    import mlflow
    import numpy as np

    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert np.isfinite(model.predict(np.zeros((1, 8), dtype=np.int64))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ISOFLOP_ARTIFACTS": "s3://no-such-bucket/x"}, "the store refuses to write there (NoSuchBucket)"),
        ({"ISOFLOP_ARTIFACTS": "s3://key:hunter2@bucket/x"}, "must be s3://bucket/folder; keys go into AWS_"),
        ({"ISOFLOP_ARTIFACTS": "s3:///x"}, "must be s3://bucket/folder"),
        ({"ISOFLOP_ARTIFACTS": "gs://bucket/x"}, "must be s3://bucket/folder"),
        ({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer: "),
        ({"MLFLOW_S3_ENDPOINT_URL": "nonsense"}, "the store does not answer: Invalid endpoint"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "no credentials were found: keys go into AWS_",
        ),
    ],
    ids=["bucket", "password", "nameless", "scheme", "nobody", "address", "keys"],
)
def test_a_store_that_cannot_be_used_is_named_without_its_keys(
    there: dict[str, str],
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    fault = artifact_store_fault(state)
    assert fault is not None
    assert fault.startswith("ISOFLOP_ARTIFACTS = ")
    assert message in fault
    assert "hunter2" not in fault
    assert "\n" not in fault


def test_the_folder_and_a_store_that_works_have_no_fault(
    there: dict[str, str], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert artifact_store_fault(state) is None
    monkeypatch.delenv("ISOFLOP_ARTIFACTS")
    assert artifact_store_fault(state) is None


@pytest.mark.parametrize(
    ("address", "kind"), [("http://127.0.0.1:9", Failure.DATABASE_LOST), (None, Failure.ERROR)]
)
def test_a_store_that_is_away_is_waited_for_and_one_that_refuses_is_not(
    there: dict[str, str], address: str | None, kind: Failure, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("content")
    client = _client(there if address is None else {**there, "MLFLOW_S3_ENDPOINT_URL": address})
    with pytest.raises(Exception, match=r"Could not connect|NoSuchBucket") as error:
        client.upload_file(str(tmp_path / "file"), "no-such-bucket", "key")
    assert classify(error.value) is kind
