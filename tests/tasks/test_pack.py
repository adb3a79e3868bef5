"""A state folder there and back: what goes along, what does not, and archives that are not whole."""

import os
from pathlib import Path

import pytest

from sweeps.gather import finished_runs
from tasks.errors import UserError
from tasks.locks import sweep_lock
from tasks.pack import pack
from tasks.parts import Joined, Parts, parts_of
from tasks.state import State, open_state
from tasks.tracking import client, ensure_experiment
from tasks.unpack import unpack

KEY = "a" * 64


@pytest.fixture
def packed_state(tracked: State) -> State:
    """One finished run with an artifact and weights, and two unfinished ones with checkpoints."""
    experiment = ensure_experiment(tracked, "model")  # a name that weights bear too
    store = client(tracked.tracking_uri)
    run = store.create_run(experiment, tags={"isoflop.run_key": KEY})
    note = tracked.home / "note.txt"
    note.write_text("found")
    store.log_artifact(run.info.run_id, str(note))
    store.log_metric(run.info.run_id, "loss", 1.5)
    store.set_terminated(run.info.run_id, "FINISHED")
    note.unlink()
    write(tracked.run_dir(KEY) / "model" / "data" / "model.pt", 1000)
    write(tracked.run_dir(KEY) / "result.json", 10)
    write(tracked.run_dir("b" * 64) / "checkpoints" / "resume.ckpt", 3_000_000)
    write(tracked.run_dir("c" * 64) / "checkpoints" / "resume.ckpt", 1_000_000)
    write(tracked.home / "trunks" / "d" / "branch-10.ckpt", 2_000_000)
    write(tracked.sweep_dir("model") / "spec.yaml", 10)
    write(tracked.data / "text-bytes" / "train.bin", 10)
    (tracked.data / "text-bytes" / "meta.json").write_text('{"content_hash": "1"}')
    return tracked


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


def files(state: State) -> dict[str, bytes]:
    kept = ("sweeps", "artifacts", "runs", "trunks", "data")
    paths = [path for name in kept for path in (state.home / name).rglob("*") if path.is_file()]
    return {path.relative_to(state.home).as_posix(): path.read_bytes() for path in paths}


def test_there_and_back(packed_state: State, tmp_path: Path) -> None:
    packed = pack(packed_state, tmp_path / "all.tar.xz", corpora=True)
    assert packed.files == (tmp_path / "all.tar.xz",)
    assert packed.checkpoints == 3
    there = open_state(tmp_path / "elsewhere")
    manifest = unpack(there, tmp_path / "all.tar.xz")
    assert (manifest.home, manifest.corpora) == (str(packed_state.home), ("text-bytes",))
    expected = {name: data for name, data in files(packed_state).items() if not name.endswith("model.pt")}
    assert files(there) == expected
    assert set(finished_runs(there.tracking_uri)) == {KEY}
    (run_id,) = finished_runs(there.tracking_uri).values()
    assert client(there.tracking_uri).get_run(run_id).info.artifact_uri.startswith(there.home.as_uri())
    (artifact,) = client(there.tracking_uri).list_artifacts(run_id)
    assert artifact.path == "note.txt"
    assert not [path for path in there.home.iterdir() if path.name.startswith(".unpack")]


def test_in_parts(packed_state: State, tmp_path: Path) -> None:
    target = tmp_path / "part.tar.xz"
    (tmp_path / "part.tar.xz.017").write_bytes(b"of an earlier archive")
    packed = pack(packed_state, target, part_bytes=1_000_000)
    assert parts_of(target) == list(packed.files)
    sizes = [path.stat().st_size for path in packed.files]
    assert set(sizes[:-1]) == {1_000_000}
    assert sum(sizes) == packed.bytes
    assert files(unpacked(tmp_path, target)).keys() >= {f"runs/{KEY}/result.json", "trunks/d/branch-10.ckpt"}


def unpacked(tmp_path: Path, archive: Path) -> State:
    there = open_state(tmp_path / "elsewhere")
    unpack(there, archive)
    return there


def test_the_largest_checkpoints_stay_where_there_is_no_room(packed_state: State, tmp_path: Path) -> None:
    target = tmp_path / "small.tar.xz"
    packed = pack(packed_state, target, limit_bytes=6 * 2**20)
    assert packed.bytes < 6 * 2**20
    assert packed.left_behind == (f"runs/{'b' * 64}/checkpoints/resume.ckpt",)
    assert not any("bbb" in name for name in files(unpacked(tmp_path, target)))


def test_runs_that_are_there_are_not_overwritten(packed_state: State, tmp_path: Path) -> None:
    target = tmp_path / "all.tar.xz"
    pack(packed_state, target)
    before = files(packed_state)
    with pytest.raises(UserError, match="there are runs here already"):
        unpack(packed_state, target)
    assert files(packed_state) == before
    unpack(packed_state, target, replace=True)
    aside = packed_state.home / "replaced-000"
    assert (aside / "runs" / KEY / "model" / "data" / "model.pt").exists()
    assert (aside / "mlflow.db").exists()
    assert set(finished_runs(packed_state.tracking_uri)) == {KEY}


def test_an_archive_that_is_not_whole_changes_nothing(packed_state: State, tmp_path: Path) -> None:
    target = tmp_path / "part.tar.xz"
    packed = pack(packed_state, target, part_bytes=1_000_000)
    there = open_state(tmp_path / "elsewhere")
    packed.files[-1].unlink()
    with pytest.raises(UserError, match="damaged or not whole"):
        unpack(there, target)
    assert not there.tracking_db.exists()
    with pytest.raises(UserError, match="no such archive"):
        unpack(there, tmp_path / "none.tar.xz")


def test_what_cannot_be_packed_is_refused(state: State, packed_state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in the state folder"):
        pack(packed_state, packed_state.home / "x.tar.xz")
    with sweep_lock(packed_state, "model"), pytest.raises(UserError, match="sweep model is under way"):
        pack(packed_state, tmp_path / "x.tar.xz")
    with pytest.raises(UserError, match="holds no runs yet"):
        pack(open_state(tmp_path / "fresh"), tmp_path / "x.tar.xz")
    assert not (tmp_path / "x.tar.xz").exists()


def test_another_corpus_of_the_same_name_is_refused(packed_state: State, tmp_path: Path) -> None:
    pack(packed_state, tmp_path / "all.tar.xz", corpora=True)
    there = open_state(tmp_path / "elsewhere")
    write(there.data / "text-bytes" / "train.bin", 10)
    (there.data / "text-bytes" / "meta.json").write_text('{"content_hash": "2"}')
    with pytest.raises(UserError, match="is another corpus"):
        unpack(there, tmp_path / "all.tar.xz")
    assert not there.tracking_db.exists()


@pytest.mark.parametrize("part_bytes", [None, 1, 7, 1000])
def test_parts_read_as_one(tmp_path: Path, part_bytes: int | None) -> None:
    content = os.urandom(100)
    with Parts(tmp_path / "f", part_bytes) as out:
        for start in range(0, 100, 13):
            out.write(content[start : start + 13])
    with Joined(out.files) as joined:
        assert joined.read(3) + b"".join(iter(lambda: joined.read(10), b"")) == content


def test_parts_that_could_not_be_written_are_gone(tmp_path: Path) -> None:
    def fail() -> None:
        with Parts(tmp_path / "f", 10) as out:
            out.write(b"x" * 25)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
