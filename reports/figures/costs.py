"""What a token costs once the model is trained: FLOPs and memory against the tokens before it."""

import altair as alt
import numpy as np

from reports.figures.charts import (
    Chart,
    Figure,
    Panel,
    Rows,
    arch_legend,
    arch_scale,
    inline,
    layer,
    log_x,
    log_y,
    shape_scale,
    six,
    tips,
)
from reports.palette import arch_label
from reports.view import View, best_optimum
from sweeps.laws.types import GroupAnalysis
from sweeps.serving import decode_profile
from xlstm.accounting import count_parameters
from xlstm.config import ModelConfig


def decode_costs(view: View, context_length: int) -> Figure | None:
    """FLOPs of a generated token and bytes of a sequence's state, of each architecture's best model at the
    headline's budget; None where the models' shapes are not known."""
    chosen = [(g, config) for g in view.at_context(context_length) if (config := _nearest(view, g))]
    if not chosen:
        return None
    seen = [2**k for k in range(5, max(15, int(np.log2(context_length)) + 5))]
    rows = [
        {
            "arch": group.arch,
            "model": f"{arch_label(group.arch)}, {config.num_blocks} x {config.d_model}",
            "N": six(count_parameters(config)),
            "seen": tokens,
            "flops": six(flops),
            "bytes": six(state),
        }
        for group, config in chosen
        for tokens, flops, state in zip(seen, *decode_profile(config, seen), strict=True)
    ]
    sizes = "; ".join(f"{row['model']}" for row in rows[:: len(seen)])
    return Figure(
        key=f"decode-{context_length}",
        caption=(
            "What one more token costs, against the tokens that are there already: attention reads all of"
            " them, an mLSTM a state of one size. Models: the planned ones nearest to the best size"
            f"{view.at(context_length)} ({sizes})."
        ),
        panels=(
            Panel(title="FLOPs of a generated token", chart=_panel(view, rows, "flops", "FLOPs")),
            Panel(title="State of one sequence", chart=_panel(view, rows, "bytes", "Bytes")),
        ),
        legend=arch_legend(view, [group for group, _ in chosen]),
        context_length=context_length,
    )


def _nearest(view: View, group: GroupAnalysis) -> ModelConfig | None:
    """The planned model whose size is nearest to the optimum's."""
    configs = [config for config in view.models if config.arch == group.arch]
    best = best_optimum(group, view.headline_budgets[0]) if view.headline_budgets else None
    if not configs or best is None:
        return None
    return min(configs, key=lambda config: abs(np.log(count_parameters(config) / best.N.value)))


def _panel(view: View, rows: Rows, field: str, title: str) -> Chart:
    x = log_x("seen", [row["seen"] for row in rows], "Tokens before")
    y = log_y(field, [row[field] for row in rows], title)
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=arch_scale(view))
    return layer(
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            shape=shape_scale(view), tooltip=tips(model="", seen=",", **{field: ".3s"})
        ),
        height=250,
    )
