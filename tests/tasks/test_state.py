"""The state folder: made once, known again, refused with a reason."""

import json
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.state import STATE_VERSION, locate, open_state
from xlstm.training.files import write_atomically


def test_a_new_folder_is_made_and_an_old_one_is_left_as_it_is(tmp_path: Path) -> None:
    state = open_state(tmp_path / "deep" / "state")
    (state.home / "mlflow.db").write_text("results")
    again = open_state(state.home)
    assert again == state
    assert json.loads((state.home / "state.json").read_text()) == {"version": STATE_VERSION}
    assert (state.home / "mlflow.db").read_text() == "results"
    assert state.tracking_uri == f"sqlite:///{state.home}/mlflow.db"


def test_the_environment_names_the_folder_or_the_project_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "there"))
    assert locate() == tmp_path / "there"
    monkeypatch.delenv("ISOFLOP_HOME")
    inside = tmp_path / "project" / "deep"
    inside.mkdir(parents=True)
    (tmp_path / "project" / "prefect.yaml").touch()
    monkeypatch.chdir(inside)
    assert locate() == tmp_path / "project" / ".isoflop"


def test_a_newer_version_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 99}')
    with pytest.raises(UserError) as error:
        open_state(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: written by a newer Isoflop (state version 99, this one knows {STATE_VERSION}):"
        " upgrade Isoflop, or set ISOFLOP_HOME to another folder"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "new"}', '{"version": 0}'])
def test_a_damaged_marker_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json: .* restore it"):
        open_state(tmp_path)


def test_a_folder_of_other_files_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds files and no state\.json"):
        open_state(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file and not a folder"):
        open_state(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\)"):
        open_state(tmp_path / "file" / "below")


def test_a_read_only_folder_is_refused_even_for_root(tmp_path: Path) -> None:
    home = open_state(tmp_path / "state").home
    home.chmod(0o555)
    try:
        with pytest.raises(UserError) as error:
            open_state(home)
    finally:
        home.chmod(0o755)
    assert str(error.value) == (
        f"{home}: is read-only: make it writable (chmod u+w), or set ISOFLOP_HOME to another folder"
    )


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
