"""Batches from the stream of tokens to the trainer, made ready ahead in a thread where a GPU would wait."""

import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from xlstm.data import TokenStream

PATIENCE_S = 0.2
"""Between looks at whether anybody still wants batches."""


class Batches:
    """The batches of a run from the step at which the trainer stands.

    `ahead`: how many are ready before they are asked for; with 0 none, and no thread. `pinned` memory lets
    the copy to a GPU run beside its computation. `rows`: which sequences of a batch are this process's. An
    error of the stream is raised where its batch is asked for.
    """

    def __init__(
        self,
        stream: TokenStream,
        step: Callable[[], int],
        *,
        rows: slice = slice(None),
        ahead: int = 0,
        pinned: bool = False,
    ) -> None:
        self.stream = stream
        self.step = step
        self.rows = rows
        self.ahead = ahead
        self.pinned = pinned

    def __iter__(self) -> Iterator[Tensor]:
        batches = self._made(self.step())
        return _ahead(batches, self.ahead) if self.ahead else batches

    def _made(self, step: int) -> Iterator[Tensor]:
        while True:
            batch = torch.from_numpy(np.ascontiguousarray(self.stream.batch(step)[self.rows]))
            yield batch.pin_memory() if self.pinned else batch
            step += 1


def _ahead(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The same batches, `count` of them made before they are asked for."""
    ready: queue.Queue[Tensor | BaseException] = queue.Queue(count)
    unwanted = threading.Event()

    def put(item: Tensor | BaseException) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(item, timeout=PATIENCE_S)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        unwanted.set()
        thread.join()
