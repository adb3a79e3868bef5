"""Shares of a batch, resume points of both forms, and which death explains the others: without processes."""

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemWriter, save

from xlstm.training.failures import Failure, StoppedError
from xlstm.training.job import RunResult
from xlstm.training.module import held_out_loss
from xlstm.training.sharded import (
    UNREADABLE,
    assemble,
    by_name,
    by_position,
    latest,
    put_in_place,
    require_readable,
)
from xlstm.training.share import ALONE, Share
from xlstm.training.together import Death, _cause, train_together


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_shares_add_up_to_the_mean_of_the_batch(total: int, ranks: int, at_once: int) -> None:
    rows = torch.arange(1, total + 1, dtype=torch.float64)[:, None] ** 2
    means, counts, seen = [], set(), []
    for rank in range(ranks):
        share = Share(rank=rank, ranks=ranks)
        own = rows[share.rows(total)]
        seen += own.flatten().tolist()
        parts = list(share.parts(own, total, at_once))
        counts.add(len(parts))
        assert all(1 <= len(part) <= at_once for part, _ in parts)
        means.append(sum(part.mean().item() * weight for part, weight in parts))
    assert seen == rows.flatten().tolist()
    assert len(counts) == 1  # shards are gathered by all together
    assert sum(means) / ranks == pytest.approx(rows.mean().item(), rel=1e-12)


def test_alone_is_the_whole_and_asks_nobody() -> None:
    rows = torch.arange(6)[:, None]
    ((part, weight),) = ALONE.parts(rows, 6, 6)
    assert torch.equal(part, rows)
    assert (weight, ALONE.agree(lambda: 7), ALONE.largest(2.5)) == (1.0, 7, 2.5)
    assert ALONE.mean(rows) is rows


def test_a_held_out_loss_is_the_mean_over_windows_whatever_the_batches() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(tokens, 7).double() * 3

    windows = torch.arange(50).view(5, 10) % 7
    losses = [held_out_loss(Fixed(), windows, size) for size in (1, 2, 3, 5)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-15)


NUMBERED = {
    "state": {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}, 2: {"step": torch.tensor(5.0)}},
    "param_groups": [{"lr": 0.1, "params": [0, 1]}, {"lr": 0.2, "params": [2]}],
}


def test_states_by_name_and_by_position_are_inverse() -> None:
    named = by_name(NUMBERED, ["b.weight", "c.weight", "a.bias"])
    assert named["param_groups"][1] == {"lr": 0.2, "params": ["a.bias"]}
    assert named["state"]["a.bias"]["step"] == 5
    assert by_position(named) == NUMBERED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As Lightning's ModelParallelStrategy lays it out."""
    folder = tmp_path / "resume.new"
    states = {"state_dict": {"w": torch.arange(1000.0)}, "optimizer_0": by_name(NUMBERED, ["w", "x", "y"])}
    save(states, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"global_step": 8}, folder / "meta.pt")
    return folder


def test_a_folder_of_shards_becomes_a_whole_checkpoint(folder: Path) -> None:
    require_readable(folder)
    whole = assemble(folder)
    assert torch.equal(whole["state_dict"]["w"], torch.arange(1000.0))
    assert whole["optimizer_states"] == [NUMBERED]
    assert whole["global_step"] == 8


@pytest.mark.parametrize("name", ["meta.pt", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_folder_that_is_not_whole_is_told(folder: Path, name: str, size: int | None) -> None:
    if size is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    with pytest.raises(UNREADABLE):
        require_readable(folder)


@pytest.mark.parametrize("before", ["none", "file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
@pytest.mark.parametrize("dies_at", [None, 0, 1])
def test_one_of_two_checkpoints_is_there_at_any_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, dies_at: int | None
) -> None:
    """`dies_at`: the rename before which the process is killed."""

    def write(path: Path, kind: str, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path /= "content"
        if kind != "none":
            path.write_text(text)

    def read(path: Path) -> str:
        return (path / "content" if path.is_dir() else path).read_text()

    path, new = tmp_path / "resume.ckpt", tmp_path / "resume.new"
    write(path, before, "old")
    write(new, after, "new")
    renames = []
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if len(renames) == dies_at:
            raise KeyboardInterrupt
        renames.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    try:
        put_in_place(new, path)
        finished = True
    except KeyboardInterrupt:
        finished = False
    found = latest(path)
    assert (found and read(found)) == ("new" if finished else None if before == "none" else "old")
    if finished:
        assert [p.name for p in tmp_path.iterdir()] == ["resume.ckpt"]


def said(failure: Failure, error: str) -> RunResult:
    return RunResult(run_key="k", status="failed", failure=failure, error=error)


LOST = said(Failure.CRASHED, "crashed: RuntimeError: Connection closed by peer")


@pytest.mark.parametrize(
    ("deaths", "kernel_ran_out", "failure", "words"),
    [
        ([(0, 1, LOST), (1, -9, None)], False, Failure.KILLED, "rank 1 of 3 by SIGKILL"),
        ([(2, -9, None), (1, -6, None)], True, Failure.OUT_OF_MEMORY, "rank 2 of 3 by the kernel"),
        ([(0, -11, None)], False, Failure.CRASHED, "rank 0 of 3 by SIGSEGV"),
        ([(0, 0, None)], False, Failure.CRASHED, "rank 0 of 3 ended with exit code 0 and without a result"),
        (
            [(0, 1, LOST), (2, 1, said(Failure.OUT_OF_GPU_MEMORY, "out of GPU memory: 9 GiB"))],
            False,
            Failure.OUT_OF_GPU_MEMORY,
            "out of GPU memory: 9 GiB (rank 2 of 3)",
        ),
        ([(1, 1, LOST)], False, Failure.CRASHED, f"{LOST.error} (rank 1 of 3)"),
    ],
)
def test_the_death_that_explains_the_others(
    deaths: list[tuple[int, int, RunResult | None]], kernel_ran_out: bool, failure: Failure, words: str
) -> None:
    found = _cause([Death(rank=r, code=c, said=s) for r, c, s in deaths], 3, kernel_ran_out)
    assert (found.failure, str(found)) == (failure, words)


def test_a_signal_before_all_have_started_is_for_those_that_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number 0 would be the whole group: the flow and its other trainings."""

    class Rank:
        begun: bool = False

        def __init__(self, *, name: str, **_: Any) -> None:
            self.second = name == "rank 1"

        @property
        def pid(self) -> int | None:
            return 4242 if self.begun else None

        def start(self) -> None:
            if self.second:
                raise StoppedError(Failure.STOPPED, "stopped by SIGTERM")
            self.begun = True

        def is_alive(self) -> bool:
            return self.begun

        def join(self, timeout: float | None = None) -> None:
            assert self.begun, "can only join a started process"

        kill = join

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Rank))
    monkeypatch.setattr(os, "kill", lambda *pid_and_number: told.append(pid_and_number))
    job: Any = SimpleNamespace(run_dir=tmp_path, devices=("cpu",) * 3, to_json=str)
    with pytest.raises(StoppedError):
        train_together(job, lambda *_: pytest.fail("nobody trains here"))
    assert told == [(4242, signal.SIGTERM)]
