"""Names of architectures: `xlstm[7:1]`, `xlstm[@3,5]`, `slstm`, `lstm`, and the names of their ablations.

    mlstm | transformer | lstm             one stack each
    xlstm[a:b]                             of every a + b blocks, a are mLSTM and the last b sLSTM blocks
    xlstm[@3,5]                            sLSTM blocks at these places, counted from 0; the others mLSTM
    slstm                                  short for xlstm[0:1]
    xlstm[1:1]-sigmoid-no-mixing           with switches (`SWITCHES`), so that a table tells them apart

One architecture has one name (`canonical_arch`), so that its runs have one key. Light: no torch here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = ("mlstm", "transformer", "lstm")

SWITCHES: Mapping[str, tuple[str, Any]] = {
    "sigmoid": ("gating", "sigmoid"),
    "no-mixing": ("memory_mixing", False),
    "no-normaliser": ("normaliser", False),
    "constant-bias": ("gate_bias_init", "constant"),
    "zero-bias": ("gate_bias_init", "zero"),
}
"""What follows a hyphen, in this order, and the field of `XLSTMConfig` that it sets."""

EXAMPLES = "mlstm, transformer, lstm, slstm, xlstm[7:1], xlstm[@3,5], xlstm[1:1]-no-mixing"

_SUFFIXES = "".join(f"(-{suffix})?" for suffix in SWITCHES)
_PATTERN = re.compile(rf"(?:slstm|xlstm\[(?:(\d+):(\d+)|@(\d+(?:,\d+)*))\]){_SUFFIXES}")


@dataclass(frozen=True, kw_only=True)
class StackName:
    """What the name of an xLSTM stack says."""

    ratio: tuple[int, int] | None = None
    """mLSTM to sLSTM blocks in lowest terms; None where positions are given."""
    positions: tuple[int, ...] = ()
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `XLSTMConfig` that are not at their defaults."""

    @property
    def text(self) -> str:
        """The canonical name."""
        kind = "@" + ",".join(map(str, self.positions)) if self.ratio is None else "{}:{}".format(*self.ratio)
        on = [suffix for suffix, (name, value) in SWITCHES.items() if self.switches.get(name) == value]
        return "-".join([f"xlstm[{kind}]", *on])

    def slstm_at(self, num_blocks: int) -> tuple[int, ...]:
        """Which of `num_blocks` blocks are sLSTM blocks. ValueError where the name does not fit the depth."""
        if self.ratio is None:
            if self.positions[-1] >= num_blocks:
                raise ValueError(
                    f"{self.text}: there is no block {self.positions[-1]} among num_blocks = {num_blocks},"
                    " which are counted from 0"
                )
            return self.positions
        period = sum(self.ratio)
        if num_blocks % period:
            raise ValueError(
                f"{self.text}: num_blocks = {num_blocks} must be a multiple of {period};"
                " or name the positions of its sLSTM blocks, as xlstm[@1,3]"
            )
        return tuple(j for j in range(num_blocks) if j % period >= self.ratio[0])


def parse_stack(name: str) -> StackName:
    """An xLSTM stack by its name. ValueError for any other."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(f"arch {name!r}: is no architecture; there are {EXAMPLES}")
    first, second, positions, *suffixes = match.groups()
    switches = dict(SWITCHES[suffix[1:]] for suffix in suffixes if suffix)
    if len(switches) < sum(suffix is not None for suffix in suffixes):
        raise ValueError(f"arch {name!r}: sets one switch twice")
    if positions:
        places = tuple(int(place) for place in positions.split(","))
        if list(places) != sorted(set(places)):
            raise ValueError(f"arch {name!r}: positions must ascend")
        return StackName(positions=places, switches=switches)
    a, b = (int(first), int(second)) if first else (0, 1)
    if a == b == 0:
        raise ValueError(f"arch {name!r}: has no blocks; one of the two must be positive")
    common = math.gcd(a, b)
    return StackName(ratio=(a // common, b // common), switches=switches)


def canonical_arch(name: str) -> str:
    """The one name of an architecture: xlstm[14:2] is xlstm[7:1]. ValueError for what is none."""
    return name if name in PLAIN else parse_stack(name).text


def arch_slug(name: str) -> str:
    """A name without brackets and colons, for files and metrics: xlstm-7-1."""
    return re.sub(r"[^\w.-]+", "-", name.replace("@", "at-")).replace("--", "-").strip("-")
