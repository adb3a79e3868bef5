"""A conclusion as a statement with its evidence and its verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.laws import Estimate
from sweeps.study.study import Study

Verdict = Literal["supported", "partly", "consistent", "undecided", "contradicted", "absent"]
"""`consistent`: a claim that something is equal or constant, which the data do not reject; no proof of it."""
Form = Literal["ratio", "nats", "log", "exponent", "count", "slope", "time"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number behind a statement."""

    what: str
    value: Estimate
    form: Form
    bears_out: bool


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A conclusion and how it stands."""

    key: str
    claim: str
    verdict: Verdict
    comment: str
    """What the verdict rests on and what limits it."""
    evidence: tuple[Evidence, ...] = ()
    quantity: str = ""
    """What the evidence's numbers are, where they are all of one kind."""


def verdict_of(evidence: Sequence[Evidence]) -> Verdict:
    """Supported where every number bears the claim out, in part where some do."""
    borne_out = sum(e.bears_out for e in evidence)
    if not evidence:
        return "absent"
    if borne_out == len(evidence):
        return "supported"
    return "partly" if borne_out else "undecided"


def level_of(study: Study) -> str:
    """The level of the intervals, as 95%."""
    return f"{study.settings.level:.0%}"


def absent(key: str, claim: str, why: str) -> Statement:
    """A statement whose data are not given."""
    return Statement(key=key, claim=claim, verdict="absent", comment=f"Not given: {why}.")


def listed(values: Sequence[float]) -> str:
    """22, 44, 110."""
    return ", ".join(f"{value:g}" for value in values)
