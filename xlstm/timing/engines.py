"""Our own generation as an engine to time: a session on a model with random weights."""

import torch
from torch import Tensor

from xlstm.generation import Session, random_model
from xlstm.timing.measure import DTYPES, Engine
from xlstm.timing.points import Point


class SessionEngine:
    """`xlstm.generation.Session`; on a GPU its step is a CUDA graph."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.decode = "graph" if session.device.type == "cuda" else "eager"

    def reset(self) -> None:
        self.session.reset()

    def prefill(self, prompts: Tensor) -> Tensor:
        self.session.prefill(prompts)
        return self.session.tokens

    def steps(self, count: int) -> Tensor:
        for _ in range(count):
            self.session.step()
        return self.session.tokens


def build_engine(point: Point) -> Engine:
    """The model of a point with new weights, and a session with room for its tokens.

    MemoryLimitError, one line, where that does not fit.
    """
    model = random_model(
        point.model, device=torch.device(point.device), dtype=DTYPES[point.dtype], seed=point.seed
    )
    session = Session(
        model,
        point.batch_size,
        point.prefill_length + point.generated,
        state_dtype=DTYPES[point.state_dtype],
    )
    return SessionEngine(session)
