"""Real text beyond the trained length, and by domain: what a language model is asked besides its overall
loss.

*xLSTM* (arXiv:2405.04517, section 4.3) trains at context 2048 and measures up to 16,384, eight times as far,
and compares validation perplexity on 571 text domains of PALOMA. Here the text is what this machine has
installed, see `domains`: a model is trained on all domains in equal parts and measured on held-out files of
each.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A named set of held-out text, by content."""

    name: str
    content_hash: str
    """SHA-256 of the tokenised train and validation shards."""


@dataclass(frozen=True, kw_only=True)
class DomainText:
    """Bytes of several domains. The trained length is the RunSpec's `context_length`."""

    kind: Literal["text"] = "text"
    domains: tuple[Domain, ...]
    max_bytes: int
    """Text taken of each domain, both splits together."""
    measured_length: int
    """Perplexity by position is measured to here."""
    windows: int = 8
    """Of `measured_length`, of each domain: what perplexity by position is measured on."""
    domain_tokens: int = 16_384
    """Held-out tokens of each domain, in windows of the trained length."""
    version: int = 1
    """Raise it when the same text is read or measured in another way."""

    def __post_init__(self) -> None:
        if len(self.domains) < 2:
            raise ValueError("DomainText.domains: give two or more")
        for name in ("max_bytes", "measured_length", "windows", "domain_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"DomainText.{name} = {getattr(self, name)}: must be positive")

    @property
    def vocab_size(self) -> int:
        """Bytes."""
        return 256
