"""What must not happen: a pickle run, a path outside the state folder, a call home, a secret told."""

import ast
import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sweeps.spec import SpecError
from sweeps.spec_files import parse_spec
from tasks.environment import environment
from tasks.errors import UserError
from tasks.services import default_endpoints, services
from tasks.state import State
from tests.tasks.command import tiny_sweep
from xlstm.training.failures import Failure, describe, redact

PROJECT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "sweeps", "xlstm", "kernels", "reports")
MINIMAL = {
    "name": "tiny",
    "archs": ["transformer"],
    "context_lengths": [32],
    "budgets": [1e9],
    "ladder": {"shapes": [{"d_model": 16, "num_blocks": 1, "num_heads": 2}]},
    "learning_rate": {"base": 0.01},
    "batch": {"tokens": 64},
}


@cache
def every_call() -> dict[str, list[tuple[Path, ast.Call]]]:
    """Every call in our sources, by what is called, as `torch.load`."""
    found: dict[str, list[tuple[Path, ast.Call]]] = {}
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                    found.setdefault(ast.unparse(node.func), []).append((path, node))
    return found


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Calls of `name` in our sources."""
    return every_call().get(name, [])


def test_checkpoints_are_loaded_as_weights_alone() -> None:
    found = list(calls("torch.load"))
    assert found
    for path, call in found:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("weights_only") == "True", f"{path}:{call.lineno}"
    (fit,) = [call for path, call in calls("trainer.fit") if path.parts[-2:] == ("training", "run.py")]
    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in fit.keywords)


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{module}.{call}"
            for module in ("pickle", "cloudpickle", "dill", "joblib")
            for call in ("load", "loads")
        ),
        "pickle.Unpickler",
        "pd.read_pickle",
        "pandas.read_pickle",
        "torch.jit.load",
        "eval",
        "exec",
        "os.system",
    ],
)
def test_nothing_in_our_sources_runs_what_it_reads(name: str) -> None:
    assert [f"{path}:{call.lineno}" for path, call in calls(name)] == []


SAFE_LOADERS = (["Yaml12Loader"], ["SafeLoader"], ["yaml.SafeLoader"])


def test_yaml_and_arrays_are_read_without_objects() -> None:
    for path, call in calls("yaml.load"):
        given = [*call.args[1:], *(k.value for k in call.keywords if k.arg == "Loader")]
        assert [ast.unparse(loader) for loader in given] in SAFE_LOADERS, f"{path}:{call.lineno}"
    for path, call in calls("np.load"):
        assert not any(k.arg == "allow_pickle" for k in call.keywords), f"{path}:{call.lineno}"
    with pytest.raises(SpecError, match="not valid YAML"):
        _load_text("name: !!python/object/apply:os.system ['true']")


def _load_text(text: str) -> None:
    import tempfile

    from sweeps.spec_files import load_spec

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        load_spec(file.name)


class Trap:
    """A pickle that writes a file when somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "run"))


def test_a_checkpoint_with_a_trap_is_put_aside_and_not_run(tmp_path: Path) -> None:
    import torch

    from xlstm.training.resuming import readable
    from xlstm.training.share import ALONE

    checkpoint, sprung = tmp_path / "resume.ckpt", tmp_path / "sprung"
    torch.save({"state_dict": Trap(sprung)}, checkpoint)
    assert readable(checkpoint, ALONE) is None
    checkpoint.write_bytes(pickle.dumps(Trap(sprung)))
    assert readable(checkpoint, ALONE) is None
    assert not sprung.exists()


names = st.text(max_size=20) | st.sampled_from(["..", ".", "../x", "/etc", "a/../../b", "a\0b", "...", "~"])


@given(names)
def test_no_name_of_a_spec_leaves_its_folder(name: str) -> None:
    state = State(home=Path("/state"))
    for place in (state.sweep_dir, state.run_dir, state.lock):
        with suppress(UserError):
            path = place(name)
            assert os.path.normpath(path) == str(path)
            assert len(path.parts) == 4
    for fields in ({"name": name}, {"data": {"name": name}}, {"data": {"tokenizer": name}}):
        try:
            spec = parse_spec({**MINIMAL, **fields})
        except SpecError:
            continue
        folder = os.path.normpath(state.data / spec.data.corpus_spec().folder_name)
        assert Path(folder).parent == state.data
        assert os.path.normpath(state.sweep_dir(spec.name)) == str(state.sweep_dir(spec.name))


def test_services_listen_on_loopback_and_say_no_secret_on_their_command_lines(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they do is seen in test_services, on the sockets of the running ones."""
    monkeypatch.setenv("ISOFLOP_TRACKING_URI", "postgresql://me:hunter2@db/mlflow")
    monkeypatch.setenv("ISOFLOP_PREFECT_DATABASE", "postgresql+asyncpg://me:hunter2@db/prefect")
    for service in services(state, default_endpoints(state)).values():
        assert "hunter2" not in " ".join(service.command)
        if service.port is not None:
            assert service.command[service.command.index("--host") + 1] == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "connection to postgresql://me:hunter2@db:5432/x failed",
            "connection to postgresql://me:***@db:5432/x failed",
        ),
        ("postgresql+asyncpg://me:p%40ss@db/x", "postgresql+asyncpg://me:***@db/x"),
        ("https://user:token@host/path", "https://user:***@host/path"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("postgresql://db/x", "postgresql://db/x"),
    ],
)
def test_passwords_of_addresses_are_not_told(text: str, told: str) -> None:
    assert redact(text) == told
    assert describe(Failure.DATABASE_LOST, text) == f"database lost: {told}"


GUARD = """
import json, socket, sys
calls = []
real_connect, real_resolve = socket.socket.connect, socket.getaddrinfo

def is_local(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")

def connect(self, address):
    if not is_local(address):
        calls.append(str(address))
        raise OSError("no network in this test")
    return real_connect(self, address)

def resolve(host, *rest, **more):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        calls.append(str(host))
        raise socket.gaierror("no network in this test")
    return real_resolve(host, *rest, **more)

socket.socket.connect, socket.getaddrinfo = connect, resolve
"""
WORK = """
import pathlib, prefect, mlflow
from prefect.testing.utilities import prefect_test_harness
from prefect.settings import get_current_settings
from mlflow.telemetry.utils import is_telemetry_disabled
from flows.isoflop_sweep import isoflop_sweep

assert get_current_settings().server.analytics_enabled is False
assert is_telemetry_disabled()
with prefect_test_harness(server_startup_timeout=120):
    state = isoflop_sweep(sys.argv[1], return_state=True)
import time; time.sleep(2)
print(json.dumps({"state": state.name, "calls": calls}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_calls_nobody_outside(tracked: State, tmp_path: Path) -> None:
    """Every connection and name that the flow's process looks up, in the environment of the embedded stack.

    CI is unset: the libraries' own clients keep quiet there.
    """
    spec = tmp_path / "quiet.yaml"
    spec.write_text(yaml.safe_dump(tiny_sweep("quiet", resources={"runs_in_parallel": 1})))
    env = {key: value for key, value in environment(tracked).items() if key not in ("CI", "PREFECT_API_URL")}
    done = subprocess.run(
        [sys.executable, "-c", GUARD + WORK, str(spec)],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"state": "Completed", "calls": []}
