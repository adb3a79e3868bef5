"""Kinds of failure of a training, told from what was raised. Light: no torch, MLflow or SQLAlchemy here."""

import errno
import re
from collections.abc import Iterator
from enum import StrEnum


class Failure(StrEnum):
    """Why a training failed; what is done about it depends on this alone."""

    OUT_OF_MEMORY = "out of memory"
    """Of the host: an allocation was refused, or the kernel ended the process."""
    OUT_OF_GPU_MEMORY = "out of GPU memory"
    DIVERGED = "diverged"
    """A loss or a gradient that is no number. The run key determines it, so a retry would only repeat it."""
    CRASHED = "crashed"
    """Ended by a fault of its own: a segmentation fault, an abort, an exit without a result."""
    KILLED = "killed"
    """Ended from outside, without a word."""
    HUNG = "hung"
    """No progress for the time that was set."""
    DISK_FULL = "disk full"
    DATABASE_LOST = "database lost"
    """The tracking store, or that of artifacts, did not answer for longer than the training's patience."""
    TIME_LIMIT = "time limit"
    STOPPED = "stopped"
    """Asked to end by SIGTERM."""
    PAUSED = "paused"
    """Its sweep's time was up. It left a checkpoint, and the next flow goes on from there."""
    ERROR = "error"
    """Anything else: an exception that the same run would meet again."""


FULL = ("no space left on device", "database or disk is full", "unexpected pos", "failed writing file")
"""The kernel's words, SQLite's, and those of torch.save, which drops the kernel's."""


class NonFiniteLossError(ArithmeticError):
    """Training diverged: the loss or its gradient is not a number."""


class StoppedError(BaseException):
    """A signal ends the training. Not an Exception, so that nothing on the way out handles it as an error."""

    def __init__(self, failure: Failure, words: str) -> None:
        super().__init__(words)
        self.failure = failure


class RankError(RuntimeError):
    """A training over several processes failed in one of them."""

    def __init__(self, failure: Failure, words: str) -> None:
        super().__init__(words)
        self.failure = failure


def classify(error: BaseException) -> Failure:
    """The kind of an exception; of a chain of causes, the first that has one."""
    for link in _chain(error):
        kind = _kind(link)
        if kind is not Failure.ERROR:
            return kind
    return Failure.ERROR


def describe(failure: Failure, reason: str) -> str:
    """One line that begins with the kind: what the tracker, the run table and the display show."""
    reason = redact(reason)
    return reason if reason.startswith(failure) else f"{failure}: {reason}"


def one_line(error: BaseException) -> str:
    """An error's first line, with its type where it is not one of ours."""
    text = str(error).strip().splitlines()
    first = text[0][:300] if text else "no message"
    ours = type(error).__module__.split(".")[0] == __name__.split(".")[0]
    return first if ours else f"{type(error).__name__}: {first}"


def redact(text: str) -> str:
    """The same without the passwords of addresses, as in postgresql://user:password@host/database."""
    return re.sub(r"(\w+://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _kind(error: BaseException) -> Failure:
    text = str(error).lower()
    if isinstance(error, StoppedError | RankError):
        return error.failure
    if isinstance(error, NonFiniteLossError):
        return Failure.DIVERGED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure.DISK_FULL
    if any(phrase in text for phrase in FULL):
        return Failure.DISK_FULL
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and _is_out_of_memory(error, text):
        on_gpu = "cuda" in text or type(error).__name__ == "OutOfMemoryError"
        return Failure.OUT_OF_GPU_MEMORY if on_gpu else Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and _is_lost_peer(error, text):
        return Failure.CRASHED
    return Failure.DATABASE_LOST if _is_lost_database(error) else Failure.ERROR


def _is_out_of_memory(error: RuntimeError, text: str) -> bool:
    """torch raises OutOfMemoryError for CUDA's allocator and a plain RuntimeError for its others."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "cuda_error_out_of_memory")
    return type(error).__name__ == "OutOfMemoryError" or any(phrase in text for phrase in phrases)


def _is_lost_peer(error: RuntimeError, text: str) -> bool:
    """NCCL's and gloo's words for another process that is gone, or a fault of the link to it."""
    ours = type(error).__name__.startswith("Dist")
    return ours or "connection closed by peer" in text or "gloo/transport" in text


def _is_lost_bucket(error: BaseException) -> bool:
    """An artifact store that is not to be reached or has a fault of its own; not one that refuses."""
    reply = getattr(error, "response", None) or {}
    unreachable = (
        "EndpointConnectionError",
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
    )
    return (
        type(error).__name__ in unreachable
        or reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    )


def _is_lost_database(error: BaseException) -> bool:
    """SQLAlchemy's and the drivers' word for a connection or a lock that is not to be had, and MLflow's."""
    package = type(error).__module__.split(".")[0]
    if package in ("sqlite3", "sqlalchemy", "psycopg"):
        return type(error).__name__ in ("OperationalError", "InterfaceError")
    if package == "botocore":
        return _is_lost_bucket(error)
    if package == "requests":
        return type(error).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout")
    return package == "mlflow" and getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
