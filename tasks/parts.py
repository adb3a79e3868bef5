"""A file in parts of limited size, for what carries no large ones: written, and read as one again."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO


class Parts(io.RawIOBase):
    """Writes `target`, or with `part_bytes` `target.000` and so on; all gone again where writing fails."""

    def __init__(self, target: Path, part_bytes: int | None) -> None:
        self.target = target
        self.part_bytes = part_bytes
        self.files: list[Path] = []
        self.written = 0
        self._file: IO[bytes] | None = None
        self._room = 0
        for old in (target, *parts_of(target)):
            old.unlink(missing_ok=True)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        left = memoryview(data)
        while left:
            file = self._part()
            size = len(left) if self.part_bytes is None else min(len(left), self._room)
            file.write(left[:size])
            left = left[size:]
            self._room -= size
            self.written += size
        return len(data)

    def _part(self) -> IO[bytes]:
        """The part that has room."""
        if self._file is not None and (self.part_bytes is None or self._room > 0):
            return self._file
        if self._file is not None:
            self._file.close()
        path = self.target
        if self.part_bytes is not None:
            path = self.target.with_name(f"{self.target.name}.{len(self.files):03d}")
            self._room = self.part_bytes
        self.files.append(path)
        self._file = path.open("wb")
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is not None:
            for path in self.files:
                path.unlink(missing_ok=True)


class Joined(io.RawIOBase):
    """Reads files one after the other."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._open = ExitStack()
        self._files: Iterator[IO[bytes]] = iter([self._open.enter_context(path.open("rb")) for path in files])
        self._file = next(self._files, None)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._file is not None:
            if data := self._file.read(size):
                return data
            self._file = next(self._files, None)
        return b""

    def close(self) -> None:
        self._open.close()
        super().close()


def parts_of(target: Path) -> list[Path]:
    """The parts that `Parts` made of a file, in their order."""
    return sorted(target.parent.glob(f"{target.name}.[0-9][0-9][0-9]"))
