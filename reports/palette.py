"""Colours and names. Charts name colours by CSS variable, so that one figure serves light, dark and paper."""

from collections.abc import Mapping, Sequence

ARCH_LABELS = {"transformer": "Transformer", "mlstm": "mLSTM", "slstm": "sLSTM", "lstm": "LSTM"}

# After Okabe and Ito, whose colours stay apart under the common colour-vision deficiencies.
_ARCH_LIGHT = ("#0072b2", "#c44e00", "#00835f", "#a8487f", "#6b5b00", "#4d4d4d")
_ARCH_DARK = ("#56b4e9", "#f0a030", "#3cc79b", "#e39ac4", "#e0d040", "#b8b8b8")
ARCH_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")

_VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b")

_PAGE_LIGHT = {
    "paper": "#fcfbf9",
    "card": "#ffffff",
    "ink": "#1d2125",
    "muted": "#5a626b",
    "rule": "#e3dfd8",
    "grid": "#eeebe5",
    "accent": "#0b5c8f",
    "error": "#b3261e",
    "warning": "#8a5a00",
    "good": "#1c6e42",
    "error-wash": "#fbeceb",
    "warning-wash": "#fbf3e0",
    "good-wash": "#e8f3ec",
}
_PAGE_DARK = {
    "paper": "#14171a",
    "card": "#1b1f23",
    "ink": "#e7e5e0",
    "muted": "#a0a8b0",
    "rule": "#30363c",
    "grid": "#262b30",
    "accent": "#6cb8ec",
    "error": "#ff8a80",
    "warning": "#f0bd5e",
    "good": "#74cf9c",
    "error-wash": "#3a2020",
    "warning-wash": "#352a14",
    "good-wash": "#183024",
}


def arch_label(arch: str) -> str:
    """The name that people use: mLSTM for `mlstm`, xLSTM[1:1] no mixing for `xlstm[1:1]-no-mixing`; an
    unknown one as it is."""
    if arch.startswith("xlstm["):
        stack, _, switches = arch.removeprefix("xlstm").partition("-")
        return f"xLSTM{stack} {switches.replace('-', ' ')}".rstrip()
    return ARCH_LABELS.get(arch, arch)


def arch_order(archs: Sequence[str]) -> list[str]:
    """Distinct architectures, the known ones first in a fixed order, so that colours stay between reports."""
    known = [arch for arch in ARCH_LABELS if arch in archs]
    return known + sorted(set(archs) - set(known))


def var(name: str) -> str:
    """A colour by its name on the page."""
    return f"var(--{name})"


def arch_color(index: int) -> str:
    """The colour of the architecture at this place of `arch_order`."""
    return var(f"arch-{index % len(_ARCH_LIGHT)}")


def context_color(index: int) -> str:
    """The colour of the context length at this place, ascending."""
    return var(f"context-{index % len(_ARCH_LIGHT)}")


def budget_color(index: int) -> str:
    """The colour of the budget at this place, ascending."""
    return var(f"budget-{index}")


def colors(n_budgets: int, *, dark: bool) -> Mapping[str, str]:
    """Every CSS variable's value. Higher budgets stand out more: darker on white, brighter on black."""
    page, arch = (_PAGE_DARK, _ARCH_DARK) if dark else (_PAGE_LIGHT, _ARCH_LIGHT)
    start, stop = (0.45, 1.0) if dark else (0.78, 0.02)
    ramp = [_viridis(stop + (start - stop) * i / max(n_budgets - 1, 1)) for i in reversed(range(n_budgets))]
    return {
        **page,
        **{f"arch-{i}": value for i, value in enumerate(arch)},
        **{f"context-{i}": value for i, value in enumerate(reversed(arch))},
        **{f"budget-{i}": value for i, value in enumerate(ramp)},
    }


def css_variables(n_budgets: int, *, dark: bool) -> str:
    """The colours as the body of a CSS rule."""
    return " ".join(f"--{name}: {value};" for name, value in colors(n_budgets, dark=dark).items())


def _viridis(t: float) -> str:
    """Linear interpolation between the anchors of matplotlib's viridis, t in [0, 1]."""
    place = min(max(t, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    left = min(int(place), len(_VIRIDIS) - 2)
    share = place - left
    pairs = zip(_channels(_VIRIDIS[left]), _channels(_VIRIDIS[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
