"""Trainings on the engines of clusters: Ray and Slurm for real on this machine."""

import os
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile

import polars as pl
import pytest
import yaml

from sweeps.gather import gather
from sweeps.plan import Plan
from sweeps.resources import Resources
from tasks import preparation, tracking
from tasks.cluster import Elsewhere
from tasks.engines import place
from tasks.errors import UserError
from tasks.slurm_engine import SlurmEngine
from tasks.state import State, open_state
from tasks.training import Hearing, Outcome, Trainer
from xlstm.data import Corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEC = {
    "name": "cluster",
    "archs": ["mlstm", "transformer"],
    "context_lengths": [32],
    "budgets": [2e8],
    "ladder": {
        "shapes": [{"d_model": d, "num_blocks": 1, "num_heads": 1} for d in (8, 12)],
        "ffn_multiple_of": 8,
    },
    "learning_rate": {"base": 0.01, "reference_width": 16},
    "batch": {"tokens": 128},
    "validation": {"tokens": 1024, "times": 2},
    "resources": {"device": "cpu", "timeout_s": 120, "checkpoint_every_s": 0.1},
}


class Planned:
    """A spec's runs in a state folder."""

    def __init__(self, state: State, folder: Path, resources: dict[str, object]) -> None:
        self.state = state
        path = folder / "cluster.yaml"
        data = {
            "source": "files",
            "name": "tiny",
            "paths": [str(folder / "text")],
            "validation_fraction": 0.2,
        }
        path.write_text(
            yaml.safe_dump({**SPEC, "data": data, "resources": {**SPEC["resources"], **resources}})
        )
        spec = preparation.read_spec(path)
        self.corpus: Corpus = preparation.prepare_data(spec, state)
        self.plan: Plan = preparation.plan_runs(spec, self.corpus)

    def train(self, hearing: Hearing | None = None, **changes: object) -> list[Outcome]:
        there = place(self.plan.spec.resources, self.state)
        launch = changes.get("launch", there.launch)
        with (
            ThreadPoolExecutor(4) as threads,
            Trainer(
                self.plan.spec,
                self.state,
                self.corpus,
                there.room,
                launch=launch,
                hearing=hearing,  # type: ignore[arg-type]
            ) as trainer,
        ):
            return list(threads.map(trainer.complete, self.plan.runs))

    def losses(self) -> pl.DataFrame:
        columns = ("run_key", "status", "loss", "train_loss")
        return gather(self.plan.table, self.state.tracking_uri).select(columns).sort("run_key")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    library = Path(sysconfig.get_path("stdlib"))
    (folder / "text").mkdir()
    for name in ("argparse", "ast", "csv", "datetime"):
        shutil.copy(library / f"{name}.py", folder / "text" / f"{name}.txt")
    return folder


def fresh(mlflow_template: Path, home: Path) -> State:
    state = open_state(home)
    copyfile(mlflow_template, state.tracking_db)
    return state


@pytest.fixture(autouse=True, scope="module")
def full_priority() -> Iterator[None]:
    """Ray lowers its workers' priority; on a busy machine of two cores they would hardly get on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def here(mlflow_template: Path, text: Path) -> pl.DataFrame:
    """Losses of the same runs by processes of this machine."""
    planned = Planned(fresh(mlflow_template, text / "here"), text, {})
    assert {outcome.status for outcome in planned.train()} == {"finished"}
    return planned.losses()


class Killer(Hearing):
    """Kills the first training that has taken a step."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.retries: list[str] = []
        self._done = threading.Event()

    def started(self, run: object) -> None:
        threading.Thread(target=self._kill, args=(run,), daemon=True).start()

    def retried(self, run: object, attempt: int, error: str) -> None:
        self.retries.append(error)

    def _kill(self, run: object) -> None:
        folder = self.state.run_dir(run.run_key)  # type: ignore[attr-defined]
        while not (folder / "progress.json").exists():
            time.sleep(0.01)
        if not self._done.is_set():
            self._done.set()
            for pid in _writers(folder / "log.txt"):
                os.kill(pid, signal.SIGKILL)


def _writers(log: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd" / "1") == str(log):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_ray_trains_the_same_and_survives_a_kill(
    mlflow_template: Path, text: Path, here: pl.DataFrame
) -> None:
    """A local cluster with several workers; one is killed with -9 in the middle of its run."""
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'isoflop[ray]'")
    planned = Planned(fresh(mlflow_template, text / "ray"), text, {"cluster": {"engine": "ray"}})
    killer = Killer(planned.state)
    outcomes = planned.train(hearing=killer)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert planned.losses().equals(here)
    assert [error.split(":")[0] for error in killer.retries] in (["killed"], ["crashed"], [])
    assert [outcome.status for outcome in planned.train()] == ["cached"] * 4


def test_ray_joins_a_cluster_that_is_there(mlflow_template: Path, text: Path, here: pl.DataFrame) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'isoflop[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        planned = Planned(
            fresh(mlflow_template, text / "joined"),
            text,
            {"cluster": {"engine": "ray", "address": cluster.address}},
        )
        assert [outcome.status for outcome in planned.train()] == ["finished"] * 4
        assert planned.losses().equals(here)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_ray_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'isoflop[ray]'")
    from tasks.ray_engine import RayEngine

    resources = Resources.model_validate({"cluster": {"engine": "ray", "address": "127.0.0.1:9"}})
    with pytest.raises(UserError, match=r"resources\.cluster\.address = 127\.0\.0\.1:9: no Ray cluster"):
        RayEngine(resources, threading.Event()).__enter__()


def slurm_answers() -> bool:
    """Whether Slurm's controller is there and has a node that works."""
    if shutil.which("sinfo") is None:
        return False
    asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool({"idle", "mixed", "allocated"} & set(asked.stdout.split()))


@pytest.mark.parametrize(
    "cluster",
    [
        "local",
        pytest.param(
            "slurm",
            marks=pytest.mark.skipif(
                not slurm_answers(),
                reason="no Slurm answers here; docs/orchestration.md sets one up on loopback",
            ),
        ),
    ],
)
def test_jobs_train_the_same_and_survive_a_kill(
    mlflow_template: Path, text: Path, here: pl.DataFrame, cluster: str
) -> None:
    """`slurm`: its real daemons; `local`: submitit's processes in their place."""
    pytest.importorskip("submitit", reason="needs the extra slurm: pip install 'isoflop[slurm]'")
    planned = Planned(fresh(mlflow_template, text / cluster), text, {"cluster": {"engine": "slurm"}})
    there = Elsewhere("cpu", Resources())
    killer = Killer(planned.state)

    def launch() -> SlurmEngine:
        folder = planned.state.home / "slurm"
        return SlurmEngine(planned.plan.spec.resources, folder, there.stopped, cluster=cluster)

    assert [outcome.status for outcome in planned.train(killer, launch=launch)] == ["finished"] * 4
    assert planned.losses().equals(here)
    failures = [
        run.data.tags.get(tracking.FAILURE)
        for run in tracking.client(planned.state.tracking_uri).search_runs(
            [tracking.ensure_experiment(planned.state, "cluster")]
        )
        if tracking.RUN_KEY in run.data.tags
    ]
    assert failures.count(None) == 4
    assert len([failure for failure in failures if failure]) == len(killer.retries)


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="says what happens where Slurm is not")
def test_slurm_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm: pip install 'isoflop[slurm]'")
    resources = Resources.model_validate({"cluster": {"engine": "slurm"}})
    with pytest.raises(UserError, match=r"resources\.cluster\.engine = slurm: "):
        SlurmEngine(resources, tmp_path, threading.Event()).__enter__()
