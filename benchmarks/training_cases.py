"""What the benchmark of training steps compares: shapes, contenders, and how much of a GPU each takes."""

from dataclasses import asdict, dataclass
from typing import Any

VOCABULARY = 50304


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, depth and heads of both architectures at one size; shapes of arXiv:2510.02228, appendix."""

    d_model: int
    num_blocks: int
    mlstm_heads: int
    heads: int
    """Of attention."""
    mlstm_ffn: int
    ffn: int


SIZES = {
    "160M": Size(d_model=768, num_blocks=12, mlstm_heads=6, heads=12, mlstm_ffn=2112, ffn=2048),
    "400M": Size(d_model=1024, num_blocks=24, mlstm_heads=4, heads=16, mlstm_ffn=2752, ffn=2752),
    "1.4B": Size(d_model=2048, num_blocks=24, mlstm_heads=8, heads=16, mlstm_ffn=5504, ffn=5504),
    "small": Size(d_model=256, num_blocks=6, mlstm_heads=2, heads=4, mlstm_ffn=704, ffn=704),
    "quick": Size(d_model=32, num_blocks=2, mlstm_heads=2, heads=2, mlstm_ffn=64, ffn=64),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a contender at a size and a context length."""

    contender: str
    size: str
    context_length: int
    sequences: int
    """A step."""
    vocabulary: int = VOCABULARY
    heads: int | None = None
    """Of attention, where not those of the size: the same parameters and FLOPs, other head widths."""
    options: tuple[tuple[str, Any], ...] = ()
    """Switches of execution of ours."""
    lr: float = 3e-4
    """Peak learning rate of ours, which has no part in the speed."""
    memory_gib: float | None = 5.0
    """While all compile at the same time; None: compiles little, and when it is measured."""

    @property
    def tokens(self) -> int:
        return self.sequences * self.context_length

    @property
    def name(self) -> str:
        more = [f"{self.heads} heads"] if self.heads else []
        more += [f"{key}={value}" for key, value in self.options]
        return " ".join([self.contender, self.size, f"S={self.context_length}", *more])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


OURS = ("ours xLSTM", "ours Transformer")
PEERS = ("Llama (Hugging Face, compiled)", "xlstm_large (official)")
FAST: tuple[tuple[str, Any], ...] = (("deterministic", False),)
LAUNCHED: tuple[tuple[str, Any], ...] = (("cuda_graph", False),)
"""Not recorded: what the host leaves between the kernels of a step."""
HALVES = (*FAST, ("micro_batch", 2))
"""In two parts, one after the other: less memory."""


def ours() -> list[Case]:
    """Most wanted first."""
    xlstm, transformer = OURS
    return [
        Case(contender=xlstm, size="160M", context_length=8192, sequences=4),
        Case(contender=transformer, size="160M", context_length=8192, sequences=4, options=FAST),
        Case(contender=xlstm, size="160M", context_length=16384, sequences=2),
        Case(contender=transformer, size="160M", context_length=8192, sequences=4, heads=6, options=FAST),
        Case(contender=transformer, size="160M", context_length=8192, sequences=4, options=HALVES),
        Case(contender=transformer, size="160M", context_length=8192, sequences=4, heads=6, options=HALVES),
        Case(contender=xlstm, size="400M", context_length=8192, sequences=4),
        Case(contender=xlstm, size="1.4B", context_length=8192, sequences=2),
        Case(contender=xlstm, size="1.4B", context_length=8192, sequences=2, options=LAUNCHED),
        Case(contender=xlstm, size="160M", context_length=8192, sequences=4, options=LAUNCHED),
        Case(contender=transformer, size="400M", context_length=8192, sequences=4, options=FAST),
        Case(contender=transformer, size="1.4B", context_length=8192, sequences=2, options=FAST),
        Case(contender=xlstm, size="160M", context_length=2048, sequences=16),
        Case(contender=transformer, size="160M", context_length=2048, sequences=16, options=FAST),
        Case(contender=transformer, size="160M", context_length=16384, sequences=2, options=FAST),
        Case(contender=transformer, size="160M", context_length=8192, sequences=4),
    ]


def peers() -> list[Case]:
    """Most wanted first. What Llama takes while it compiles is what its training takes."""
    llama, official = PEERS
    return [
        Case(contender=llama, size="160M", context_length=8192, sequences=4, memory_gib=33),
        Case(contender=official, size="160M", context_length=8192, sequences=4, memory_gib=None),
        Case(contender=llama, size="400M", context_length=8192, sequences=4, memory_gib=52),
        Case(contender=llama, size="1.4B", context_length=8192, sequences=2, memory_gib=56),
        Case(contender=official, size="160M", context_length=16384, sequences=2, memory_gib=None),
        Case(contender=llama, size="160M", context_length=16384, sequences=2, memory_gib=33),
        Case(contender=llama, size="160M", context_length=2048, sequences=16, memory_gib=33),
        Case(contender=official, size="400M", context_length=8192, sequences=4, memory_gib=None),
    ]


def quick() -> list[Case]:
    """On a CPU, in seconds: that it works."""
    return [
        Case(contender=name, size="quick", context_length=64, sequences=4, vocabulary=256, memory_gib=None)
        for name in (*OURS, PEERS[0])
    ]
