"""Processes for real: how trainings end, and that nothing outlives its owner."""

import dataclasses
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tasks.child import Child, End, Limits
from tasks.launcher import Launcher, LauncherError
from tasks.zygote import exit_code
from xlstm.config import TransformerConfig
from xlstm.data import Corpus, CorpusSpec, prepare_corpus
from xlstm.run_spec import DataSpec, OptimizerSpec, RunSpec
from xlstm.training.failures import Failure
from xlstm.training.job import CHECKPOINT, RunResult, TrainJob

FAKE_ZYGOTE = '''
"""A zygote whose trainings do what their run's name says."""
import ctypes, errno, os, signal, socket, sys, time
from tasks.zygote import Zygote
from xlstm.training.files import write_atomically
from xlstm.training.job import TIME_IS_UP, RunResult, TrainJob

def work(request):
    job = TrainJob.from_json(request["job"])
    if "death" in request:
        return write_atomically(job.run_dir / "recorded", f"{request['failure']}: {request['death']}")
    write_atomically(job.run_dir / "pid", str(os.getpid()))
    print("working on", job.run_name, flush=True)
    if job.run_name == "hang":
        signal.signal(TIME_IS_UP, signal.SIG_IGN)
    if job.run_name in ("hang", "sleep"):
        time.sleep(60)
    if job.run_name == "abort":
        os.abort()
    if job.run_name == "segfault":
        ctypes.string_at(0)
    if job.run_name == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if job.run_name == "vanish":
        os._exit(0)
    if job.run_name == "raise":
        raise RuntimeError("no such luck")
    result = RunResult(run_key=job.spec.run_key, status="finished", loss=float(job.spec.seed))
    write_atomically(job.run_dir / "result.json", result.to_json())

Zygote(socket.socket(fileno=int(sys.argv[1])), work).serve()
'''
FAKE = (sys.executable, "-c", FAKE_ZYGOTE)


def tiny_spec(data: DataSpec, **changes: object) -> RunSpec:
    fields: dict[str, object] = {
        "model": TransformerConfig(vocab_size=256, d_model=16, num_blocks=1, num_heads=2, ffn_dim=32),
        "data": data,
        "optimizer": OptimizerSpec(peak_lr=3e-3, warmup_steps=4, cooldown_steps=4),
        "context_length": 16,
        "batch_size": 4,
        "steps": 20,
        "validation_tokens": 320,
        "validation_every": 10,
        "seed": 0,
        **changes,
    }
    return RunSpec(**fields)  # type: ignore[arg-type]


def job(folder: Path, name: str, **spec_changes: object) -> TrainJob:
    data = DataSpec(name="none", tokenizer="bytes", content_hash="0")
    return TrainJob(
        spec=tiny_spec(data, **spec_changes),
        data_folder=folder,
        run_dir=folder / name,
        tracking_uri="sqlite:///none.db",
        experiment="tests",
        run_name=name,
    )


@pytest.fixture(scope="module")
def fake() -> Iterator[Launcher]:
    with Launcher(FAKE) as launcher:
        yield launcher


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def child_of(run_dir: Path) -> int:
    assert until((run_dir / "pid").exists)
    return int((run_dir / "pid").read_text())


def test_results_come_back_to_the_thread_that_asked(fake: Launcher, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        jobs = [job(tmp_path, f"ok{i}", seed=i) for i in range(24)]
        results = list(threads.map(lambda j: fake.run(j, timeout_s=30), jobs))
    assert [r.loss for r in results] == [float(i) for i in range(24)]
    assert {r.status for r in results} == {"finished"}


NO_RESULT = "ended with exit code {} and without a result; last log line: {}"


@pytest.mark.parametrize(
    ("name", "failure", "reason"),
    [
        ("abort", Failure.CRASHED, "by SIGABRT; last log line: Fatal Python error: Aborted"),
        ("segfault", Failure.CRASHED, "by SIGSEGV; last log line: Fatal Python error: Segmentation fault"),
        ("vanish", Failure.CRASHED, NO_RESULT.format(0, "working on vanish")),
        ("raise", Failure.ERROR, NO_RESULT.format(exit_code(Failure.ERROR), "RuntimeError: no such luck")),
        (
            "full",
            Failure.DISK_FULL,
            NO_RESULT.format(exit_code(Failure.DISK_FULL), "OSError: [Errno 28] No space left on device"),
        ),
    ],
)
def test_a_training_that_dies_is_a_failed_run(
    fake: Launcher, tmp_path: Path, name: str, failure: Failure, reason: str
) -> None:
    dying = job(tmp_path, name)
    dying.run_dir.mkdir()
    (dying.run_dir / "result.json").write_text(
        RunResult(run_key=dying.spec.run_key, status="finished", loss=1.0).to_json()
    )
    (dying.run_dir / "log.txt").write_text("an earlier attempt\n")
    result = fake.run(dying, timeout_s=30)
    error = f"{failure}: {reason}"
    assert (result.status, result.failure, result.error, result.loss) == ("failed", failure, error, None)
    assert (dying.run_dir / "recorded").read_text() == error
    assert fake.run(job(tmp_path, "ok"), timeout_s=30).status == "finished"


def test_kill_minus_nine_of_a_training(fake: Launcher, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        killed = threads.submit(fake.run, job(tmp_path, "sleep"), timeout_s=60)
        os.kill(child_of(tmp_path / "sleep"), signal.SIGKILL)
        error = killed.result(timeout=30).error
    assert error == "killed: by SIGKILL; last log line: working on sleep"


@pytest.mark.parametrize("name", ["sleep", "hang"])
def test_a_training_has_a_time_limit(fake: Launcher, tmp_path: Path, name: str) -> None:
    """`sleep` heeds the signal, `hang` has to be killed."""
    result = fake.run(job(tmp_path, name), timeout_s=0.3)
    assert result.error == f"time limit: killed after 0.3 s; last log line: working on {name}"
    assert not alive(child_of(tmp_path / name))


def test_a_training_without_progress_is_hung_and_one_with_progress_is_not(
    fake: Launcher, tmp_path: Path
) -> None:
    moving, still = job(tmp_path, "sleep"), job(tmp_path, "hang")
    moving.run_dir.mkdir()
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(fake.run, j, timeout_s=4.0, hang_after_s=1.5) for j in (moving, still)]
        while not ends[0].done():
            (moving.run_dir / "progress.json").touch()
            time.sleep(0.1)
    assert [end.result().failure for end in ends] == [Failure.TIME_LIMIT, Failure.HUNG]
    assert "killed after 1.5 s without progress" in (ends[1].result().error or "")


def test_a_stopped_training_and_a_stopped_zygote_are_hung_and_leave_nobody(tmp_path: Path) -> None:
    with Launcher(FAKE) as launcher, ThreadPoolExecutor(1) as threads:
        running = threads.submit(launcher.run, job(tmp_path, "sleep"), timeout_s=60, hang_after_s=1.0)
        pid = child_of(tmp_path / "sleep")
        os.kill(psutil.Process(pid).ppid(), signal.SIGSTOP)
        os.kill(pid, signal.SIGSTOP)
        assert running.result(timeout=30).failure is Failure.HUNG
        assert until(lambda: not alive(pid))
        assert launcher.run(job(tmp_path, "ok"), timeout_s=30).status == "finished"


def test_a_zygote_that_went_before_it_had_read_is_gone_and_no_error() -> None:
    """As for the second of two trainings that are to end, where the first one's owner lost patience."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closing = threading.Timer(0.3, theirs.close)
    closing.start()
    with Child(connection=mine, pid=0) as child:
        assert child.wait(Limits(timeout_s=0.01)) == End(code=None, cause=Failure.TIME_LIMIT)
    closing.join()


def test_a_training_holds_its_lease_to_its_end(fake: Launcher, tmp_path: Path) -> None:
    """And nobody holds it then: neither the zygote nor a training that was forked meanwhile."""
    lease = tmp_path / "lease"

    def is_free() -> bool:
        with lease.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    mine = os.open(lease, os.O_RDWR | os.O_CREAT)
    fcntl.flock(mine, fcntl.LOCK_EX)
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(fake.run, job(tmp_path, "sleep"), timeout_s=60, lease=mine)
        pid = child_of(tmp_path / "sleep")
        other = threads.submit(fake.run, job(tmp_path, "hang"), timeout_s=60)
        other_pid = child_of(tmp_path / "hang")
        os.close(mine)
        assert not is_free()
        os.kill(pid, signal.SIGKILL)
        assert held.result(timeout=30).status == "failed"
        assert is_free()
        os.kill(other_pid, signal.SIGKILL)
        other.result(timeout=30)


def test_leaving_ends_the_trainings(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        with Launcher(FAKE) as launcher:
            running = threads.submit(launcher.run, job(tmp_path, "sleep"), timeout_s=60)
            pid = child_of(tmp_path / "sleep")
        assert running.result(timeout=30).status == "failed"
    assert until(lambda: not alive(pid))
    with pytest.raises(LauncherError, match="closed"):
        launcher.run(job(tmp_path, "ok"), timeout_s=1)


def test_a_dead_zygote_is_replaced(tmp_path: Path) -> None:
    with Launcher(FAKE) as launcher, ThreadPoolExecutor(1) as threads:
        running = threads.submit(launcher.run, job(tmp_path, "sleep"), timeout_s=60)
        pid = child_of(tmp_path / "sleep")
        psutil.Process(pid).parent().kill()  # type: ignore[union-attr]
        assert "ended with the zygote" in (running.result(timeout=30).error or "")
        assert until(lambda: not alive(pid))
        assert launcher.run(job(tmp_path, "ok"), timeout_s=30).status == "finished"


def test_a_zygote_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = (sys.executable, "-c", "raise ImportError('torch is not installed')")
    with (
        Launcher(broken) as launcher,
        pytest.raises(LauncherError, match=r"cannot be started: ImportError: torch is not installed"),
    ):
        launcher.run(job(tmp_path, "ok"), timeout_s=5)


def test_trainings_find_the_variables_that_a_launcher_was_given() -> None:
    with Launcher(FAKE, {"ISOFLOP_TEST_VARIABLE": "mps"}) as launcher:
        assert launcher._zygote is not None
        process = psutil.Process(launcher._zygote._process.pid)
        deadline = time.monotonic() + 30
        while process.environ().get("ISOFLOP_TEST_VARIABLE") != "mps":  # not until it has become Python
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_zygote_that_nobody_asked_is_not_waited_for(tmp_path: Path) -> None:
    """It may be importing still, and hears of its owner's end only then."""
    say = "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    busy = f"import os, pathlib, sys, time; {say}; time.sleep(60)"
    launcher = Launcher((sys.executable, "-c", busy, str(tmp_path / "pid")))
    zygote = child_of(tmp_path)
    launcher.close()
    assert not alive(zygote)
    launcher.close()


OWNER = """
import sys, threading
sys.path.insert(0, {tests!r})
from test_launcher import FAKE, Launcher, Path, job
assert not {{"torch", "lightning", "mlflow"}} & sys.modules.keys()
launchers = []
thread = threading.Thread(target=lambda: launchers.append(Launcher(FAKE)))
thread.start(); thread.join()  # the thread that started the zygote is gone, the zygote is not
launchers[0].run(job(Path({folder!r}), "hang"), timeout_s=60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_training_outlives_the_owner(tmp_path: Path, number: signal.Signals) -> None:
    code = OWNER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    owner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    training = child_of(tmp_path / "hang")
    zygote = psutil.Process(training).ppid()
    assert os.getpgid(training) == os.getpgid(owner.pid)
    owner.send_signal(number)
    owner.wait(timeout=30)
    assert until(lambda: not alive(training) and not alive(zygote), seconds=20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    (root / "text").mkdir()
    for i in range(20):
        (root / "text" / f"f{i}.txt").write_text(f"def f{i}(x):\n    return x * {i} + {i * i}\n" * 3)
    return prepare_corpus(
        CorpusSpec(source="files", paths=(str(root / "text"),), validation_fraction=0.25), root / "tiny"
    )


def test_real_trainings_survive_a_kill_bit_identically(
    corpus: Corpus, tracking_uri: str, tmp_path: Path
) -> None:
    """The zygote with its real imports: two runs at once, one killed in the middle and trained again."""
    from mlflow.tracking import MlflowClient

    def real(name: str, **changes: object) -> TrainJob:
        return TrainJob(
            spec=tiny_spec(corpus.spec(), steps=400, **changes),
            data_folder=corpus.folder,
            run_dir=tmp_path / name,
            tracking_uri=tracking_uri,
            experiment="tests",
            artifact_root=(tmp_path / "artifacts").as_uri(),
            run_name=name,
            checkpoint_every_s=0.0 if name == "cut" else 1e9,
        )

    with Launcher() as launcher, ThreadPoolExecutor(2) as threads:
        whole = threads.submit(launcher.run, real("whole"), timeout_s=120)
        cut = threads.submit(launcher.run, real("cut"), timeout_s=120)
        assert until((tmp_path / "cut" / CHECKPOINT).exists, 120)
        (pid,) = (p.pid for p in _holders(tmp_path / "cut" / "log.txt"))
        os.kill(pid, signal.SIGKILL)
        killed = cut.result(timeout=60)
        assert killed.failure is Failure.KILLED
        resumed = launcher.run(real("cut"), timeout_s=120)
        finished = whole.result(timeout=120)
        bad = launcher.run(dataclasses.replace(real("bad"), data_folder=tmp_path), timeout_s=60)
    assert resumed.status == finished.status == "finished"
    assert resumed.loss == finished.loss
    assert resumed.train_loss == finished.train_loss
    assert bad.error == f"error: {tmp_path}: no prepared corpus here (no meta.json)"
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    found = {(r.info.run_name, r.info.status, r.data.tags.get("isoflop.error")) for r in runs}
    assert found == {
        ("whole", "FINISHED", None),
        ("cut", "FINISHED", None),
        ("cut", "FAILED", killed.error),
        ("bad", "FAILED", bad.error),
    }


def _holders(log: Path) -> list[psutil.Process]:
    """Processes below this one that write to a log."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any(os.path.realpath(f"/proc/{process.pid}/fd/{fd}") == str(log) for fd in (1, 2))
    ]
