"""Kinds of failure, from exceptions that the real libraries raise."""

import errno
import os
import sqlite3
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy
import torch

from xlstm.data import CorpusError
from xlstm.training.failures import Failure, NonFiniteLossError, StoppedError, classify, describe


def allocate_on_the_host() -> None:
    torch.empty(1 << 60)


def allocate_in_python() -> None:
    bytearray(1 << 60)


def write_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def save_to_a_full_disk() -> None:
    torch.save(torch.zeros(1 << 16), "/dev/full")


def meet_a_locked_database(tmp: Path) -> None:
    with sqlite3.connect(tmp / "db") as holder:
        holder.execute("CREATE TABLE t (x)")
        holder.execute("BEGIN EXCLUSIVE")
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp / 'db'}", connect_args={"timeout": 0.05})
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))


def ask_a_server_that_is_gone() -> None:
    from mlflow.tracking import MlflowClient

    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    try:
        MlflowClient("http://127.0.0.1:9").search_experiments()
    finally:
        del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


def connect_to_a_postgres_that_is_gone() -> None:
    sqlalchemy.create_engine("postgresql+psycopg://u:p@127.0.0.1:9/db").connect()


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as error:  # noqa: PT011 (the kind is what is tested)
        act()
    return error.value


@pytest.mark.parametrize(
    ("act", "failure"),
    [
        (allocate_on_the_host, Failure.OUT_OF_MEMORY),
        (allocate_in_python, Failure.OUT_OF_MEMORY),
        (write_to_a_full_disk, Failure.DISK_FULL),
        (save_to_a_full_disk, Failure.DISK_FULL),
        (ask_a_server_that_is_gone, Failure.DATABASE_LOST),
        pytest.param(
            connect_to_a_postgres_that_is_gone,
            Failure.DATABASE_LOST,
            marks=pytest.mark.skipif(find_spec("psycopg") is None, reason="needs the extra postgres"),
        ),
    ],
)
def test_what_the_libraries_raise_is_told_apart(act: Callable[[], object], failure: Failure) -> None:
    assert classify(raised(act)) is failure


def test_a_locked_database_is_a_lost_one(tmp_path: Path) -> None:
    assert classify(raised(lambda: meet_a_locked_database(tmp_path))) is Failure.DATABASE_LOST


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Failure.OUT_OF_GPU_MEMORY),
        (RuntimeError("Triton Error [CUDA]: out of memory"), Failure.OUT_OF_GPU_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Failure.OUT_OF_MEMORY),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Failure.DISK_FULL),
        (sqlite3.OperationalError("database or disk is full"), Failure.DISK_FULL),
        (NonFiniteLossError("diverged: train loss nan"), Failure.DIVERGED),
        (StoppedError(Failure.HUNG, "stopped"), Failure.HUNG),
        (CorpusError("holds other tokens"), Failure.ERROR),
        (sqlite3.IntegrityError("UNIQUE constraint failed"), Failure.ERROR),
        (FileNotFoundError(errno.ENOENT, "No such file"), Failure.ERROR),
    ],
)
def test_kinds_of_errors(error: BaseException, failure: Failure) -> None:
    assert classify(error) is failure
    wrapped = RuntimeError("while training")
    wrapped.__cause__ = error
    assert classify(wrapped) is failure


def test_an_error_begins_with_its_kind_once() -> None:
    assert describe(Failure.CRASHED, "by SIGSEGV") == "crashed: by SIGSEGV"
    assert describe(Failure.DIVERGED, "diverged: train loss nan") == "diverged: train loss nan"
