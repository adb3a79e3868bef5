"""Where a report's numbers come from: everything a reader needs to judge or regenerate them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The facts of a sweep that stand neither in its runs nor in its fits."""

    sweep: str
    """Name of the sweep, the report's title."""
    created_at: str
    """When the report was made: ISO 8601, UTC."""
    source: str = "trained here"
    """`trained here`, or `run table <path>` for runs that came from elsewhere."""
    spec_yaml: str = ""
    """The spec as the user wrote it; empty for a run table."""
    data: Mapping[str, object] = field(default_factory=dict)
    """Meta data of the tokenised corpus. Keys that the report explains (each may be absent): `name`,
    `tokenizer`, `vocab_size`, `hash`, `files`, `bytes`, `train_tokens`, `val_tokens`, `split`, `unigram_loss`
    (nats per token on the validation text), `bytes_per_token`. Any other key is listed as it is."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package name -> version, `python` included."""
    git_revision: str | None = None
    """Commit of the code, with `-dirty` where the tree had changes."""
    wall_time_s: float | None = None
    """From the start of the sweep to the report, cached runs included at no cost."""
    train_flops: float | None = None
    """Training FLOPs of all finished runs together."""
    device: str | None = None
    mlflow_url: str | None = None
    """Base address of the MLflow UI, `http://127.0.0.1:5000`; None leaves runs without links."""
    regenerate: str | None = None
    """The command that makes this report again from the cached runs."""

    @property
    def loss_unit(self) -> str:
        """`nats per byte` where a token is a byte."""
        return "nats per byte" if self.data.get("tokenizer") == "bytes" else "nats per token"

    @property
    def unigram_loss(self) -> float | None:
        """Validation loss of the unigram model, nats per token; None where it is not known."""
        return _number(self.data.get("unigram_loss"))

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text behind one token; None where it is not known."""
        return _number(self.data.get("bytes_per_token"))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
