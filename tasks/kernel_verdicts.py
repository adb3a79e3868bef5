"""Which kernel configurations were proven or refused on this machine, read from what the trials left on disk.

Kernels try a configuration before its first use and keep the verdict beside Triton's cache, named after
everything that it depends on (`kernels.trials`). A verdict of other sources, of another compiler or device
has another name, and does not count here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one trial."""

    kernel: str
    config: str
    dtype: str
    error: float
    """Largest relative error against float64; infinite where the kernel did not run or not repeat itself."""
    proven: bool


def kept_verdicts(device: torch.device) -> Iterator[Verdict]:
    """The verdicts that hold on a device today."""
    from kernels import trials

    for kernel, module in _kernels():
        for path in sorted(trials.verdict_folder(module.__name__).glob("*.json")):
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                trial, error = module.Trial(**kept["trial"]), float(kept["error"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # of another version of the code, or being written
            if trials.verdict_path(trial, device, module.__name__) == path:
                proven = error <= module.TOLERANCE[trial.dtype]
                yield Verdict(
                    kernel=kernel, config=trial.config, dtype=trial.dtype, error=error, proven=proven
                )


def _kernels() -> Iterator[tuple[str, ModuleType]]:
    """Names, and modules that try them: each has its `Trial` and its `TOLERANCE` by dtype."""
    from kernels.mlstm import sequence_check
    from kernels.slstm import check

    yield "mLSTM", sequence_check
    yield "sLSTM", check


def summary(verdicts: list[Verdict]) -> list[str]:
    """A line a configuration and dtype: how often it was proven, with the largest error, or refused."""
    lines = []
    for key in sorted({(v.kernel, v.config, v.dtype) for v in verdicts}):
        there = [v for v in verdicts if (v.kernel, v.config, v.dtype) == key]
        proven = [v.error for v in there if v.proven]
        refused = [v.error for v in there if not v.proven]
        said = []
        if proven:
            said.append(f"proven for {_problems(len(proven))}, error at most {max(proven):.1e}")
        if refused:
            wrong = [error for error in refused if error != float("inf")]
            how = f"wrong by up to {max(wrong):.1e}" if wrong else "does not run, or not twice the same"
            said.append(f"refused for {_problems(len(refused))}, {how}: the next configuration is used")
        lines.append(f"{' '.join(key)}: {'; '.join(said)}")
    return lines


def _problems(count: int) -> str:
    return f"{count} kind{'' if count == 1 else 's'} of problem"
