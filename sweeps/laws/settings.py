"""Settings of the fits: the same defaults for the flow, the command line and the Python interface."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LawSettings:
    """How runs become laws. Every field is recorded with the result."""

    law: str = "chinchilla"
    """Form of the parametric law that answers: chinchilla, tied, gamma, kaplan, no-E, over-training."""
    estimator: str = "huber-log"
    """huber-log (Approach 3), ls-log, ls, or vp (variable projection)."""
    huber_delta: float | Literal["auto"] = 1e-3
    """Where Huber's loss turns linear, in nats of ln L; auto is 1.345 x 1.4826 MAD of the residuals."""
    resamples: int = 1000
    """Bootstrap resamples behind every interval; 0 gives none."""
    level: float = 0.95
    target_budgets: tuple[float, ...] = ()
    """FLOPs at which the answer is wanted, beside the budgets of the grid."""
    seed: int = 0
    profile: tuple[str, ...] = ()
    """Quantities whose profile likelihood is wanted beside the bootstrap, as `a` or `E`. It takes the noise
    to be independent and of one size, and is too narrow where it is not."""
    served_tokens: float = 0.0
    """Tokens that the model will serve over its life; 0 asks for no serving optimum."""
