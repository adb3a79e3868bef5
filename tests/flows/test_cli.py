"""The command line: an error that is the user's to mend is one line and exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile

import pytest
import yaml

from flows import cli
from flows.plan_table import short
from tasks.environment import Endpoints
from tasks.state import STATE_VERSION, State, open_state

Isoflop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The state folder of the commands; what they set in the environment is undone."""
    before = dict(os.environ)
    os.environ["ISOFLOP_HOME"] = str(tmp_path / "state")
    yield tmp_path / "state"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def isoflop(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Isoflop:
    """Runs a command: exit code, standard output, standard error."""

    def run(*command: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isoflop", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def changed(tiny: Path, folder: Path, **fields: object) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(tiny.read_text()), **fields}))
    return path


@pytest.mark.parametrize("command", ["plan", "sweep", "report"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bugets": [1e9]}, "{spec}: bugets: unknown key; did you mean budgets?"),
        ({"budgets": [-1.0]}, "{spec}: budgets.0 = -1.0: Input should be greater than 0"),
        ({"name": "Two words"}, "{spec}: name = 'Two words': "),
    ],
)
def test_a_bad_spec_is_one_line_before_anything_starts(
    isoflop: Isoflop,
    home: Path,
    tiny: Path,
    tmp_path: Path,
    command: str,
    fields: dict[str, object],
    message: str,
) -> None:
    spec = changed(tiny, tmp_path, **fields)
    code, _, error = isoflop(command, spec)
    assert code == 2
    assert error.startswith("isoflop: " + message.format(spec=spec))
    assert error.count("\n") == 1
    assert not home.exists()


def test_unknown_profiles_and_unreadable_files_are_named(isoflop: Isoflop, tmp_path: Path) -> None:
    assert isoflop("plan", "fast")[::2] == (
        2,
        "isoflop: profile 'fast': not known; use one of fineweb, gpu, paper, paper-large, quick, ray, slurm,"
        " or the path of a .yaml file\n",
    )
    assert isoflop("plan", tmp_path / "absent.yaml")[::2] == (
        2,
        f"isoflop: {tmp_path}/absent.yaml: no such file\n",
    )
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, error = isoflop("plan", tmp_path / "binary.yaml")
    assert code == 2
    assert error.startswith(f"isoflop: {tmp_path}/binary.yaml: cannot be read: ")


def test_corpora_that_are_no_corpora_are_named(isoflop: Isoflop, tiny: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "absent"):
        spec = changed(tiny, tmp_path, data={"source": "files", "name": "none", "paths": [str(path)]})
        code, _, error = isoflop("plan", spec)
        assert code == 2
        assert error.startswith(f"isoflop: {path}: ")
        assert error.count("\n") == 1


def test_a_size_that_does_not_fit_is_named(isoflop: Isoflop, tiny: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(tiny.read_text())
    spec = changed(tiny, tmp_path, resources={**fields["resources"], "memory_gib": 1e-4})
    code, _, error = isoflop("plan", spec)
    assert code == 2
    assert error.startswith("isoflop: ladder.shapes: mlstm d_model 12 x 1 blocks needs ")
    assert error.endswith("resources.memory_gib is 0.0001; drop the size\n")


def test_state_folders_that_cannot_be_used_are_named(isoflop: Isoflop, home: Path, tiny: Path) -> None:
    open_state(home)
    (home / "state.json").write_text('{"version": 7}')
    (home / "mlflow.db").write_text("results")
    for command in (["plan", tiny], ["sweep", tiny], ["up"], ["down"], ["doctor"]):
        assert isoflop(*command)[::2] == (
            2,
            f"isoflop: {home}: written by a newer Isoflop (state version 7, this one knows {STATE_VERSION}):"
            " upgrade Isoflop, or set ISOFLOP_HOME to another folder\n",
        )
    assert (home / "mlflow.db").read_text() == "results"


def test_a_read_only_state_folder_is_named(isoflop: Isoflop, home: Path, tiny: Path) -> None:
    open_state(home)
    home.chmod(0o555)
    try:
        code, _, error = isoflop("sweep", tiny)
    finally:
        home.chmod(0o755)
    assert code == 2
    assert error.startswith(f"isoflop: {home}: is read-only: ")


def test_outside_of_the_project_nothing_is_started(
    isoflop: Isoflop, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["report", "quick"], ["inference", "quick"], ["up"]):
        assert isoflop(*command)[::2] == (
            2,
            f"isoflop: {tmp_path}: no prefect.yaml here or above: run isoflop in its project's folder\n",
        )
    assert not home.exists()


def test_env_says_in_a_shell_where_the_services_listen(
    isoflop: Isoflop, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isoflop("env")[::2] == (2, "isoflop: the services do not run: isoflop up starts them\n")
    monkeypatch.setenv("ISOFLOP_TRACKING_URI", "postgresql://user:secret@db/mlflow")
    listening = Endpoints(prefect_port=4201, mlflow_port=5001)
    monkeypatch.setattr(cli.services, "running_endpoints", lambda state: listening)
    code, out, error = isoflop("env")
    assert (code, error) == (0, "")
    show = 'echo "$PREFECT_API_URL $MLFLOW_TRACKING_URI"'
    heard = subprocess.run(["sh", "-c", out + show], capture_output=True, text=True, check=True).stdout
    assert heard == "http://127.0.0.1:4201/api http://127.0.0.1:5001\n"
    assert "secret" not in out


def test_debug_shows_the_traceback(isoflop: Isoflop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["isoflop", "--debug", "plan", "fast"])
    with pytest.raises(ValueError, match="profile 'fast': not known"):
        cli.main()


def test_a_plan_shows_every_run_and_what_is_finished(isoflop: Isoflop, tiny: Path) -> None:
    code, out, error = isoflop("plan", tiny)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    header = "run N D C off budget D/N steps batch peak lr about"
    assert " ".join(lines[0].split()) == header
    assert sum(line.startswith(("mlstm-32-", "transformer-32-")) for line in lines) == 12
    assert "12 runs" in out
    assert "0 are finished already" in out
    assert "corpus tiny, bytes: " in out


def test_overrides_change_the_plan(isoflop: Isoflop, tiny: Path) -> None:
    _, out, _ = isoflop("plan", tiny, "--set", "archs=[mlstm]", "--set", "budgets=[1e8]")
    assert "3 runs" in out
    assert isoflop("plan", tiny, "--set", "archs")[::2] == (
        2,
        "isoflop: override 'archs': write key=value, as resources.threads=2\n",
    )


@pytest.fixture
def tracked(home: Path, mlflow_template: Path) -> State:
    state = open_state(home)
    copyfile(mlflow_template, state.tracking_db)
    return state


def test_the_doctor_finds_a_healthy_folder_healthy(isoflop: Isoflop, tracked: State) -> None:
    code, out, _ = isoflop("doctor")
    assert "torch 2." in out
    assert f"{tracked.home} (version {STATE_VERSION})" in out
    assert "schema and integrity are good" in out
    assert "mLSTM on cpu: reference" in out
    assert ("nothing is wrong" in out) == (code == 0)


def test_the_doctor_names_what_is_wrong(isoflop: Isoflop, tracked: State) -> None:
    tracked.tracking_db.write_text("overwritten")
    record = {"identity": {"pid": 999_999, "started": 1.0}, "port": None}
    tracked.services_file.write_text(json.dumps({"worker": record}))
    code, out, _ = isoflop("doctor")
    assert code == 1
    wrong = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("wrong")]
    said = {topic: text for _, topic, text in wrong}
    assert said["worker"] == "died: run isoflop up to start it again"
    assert said["mlflow.db"].startswith(f"{tracked.tracking_db}: is no MLflow database")


def test_the_schema_is_what_editors_read(isoflop: Isoflop, home: Path, tiny: Path) -> None:
    code, out, error = isoflop("schema")
    assert (code, error) == (0, "")
    schema = json.loads(out)
    assert yaml.safe_load(tiny.read_text()).keys() <= schema["properties"].keys()
    assert not schema["additionalProperties"]
    assert not home.exists()


def test_nothing_to_stop_is_no_error(isoflop: Isoflop, home: Path) -> None:
    assert isoflop("down") == (0, "nothing was running\n", "")


@pytest.mark.parametrize(
    ("number", "text"), [(41_280, "41.3k"), (1.18e6, "1.18M"), (2.5e9, "2.5G"), (12, "12")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text
