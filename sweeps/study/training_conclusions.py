"""Conclusions from the token/parameter runs and the parametric fits."""

import numpy as np

from sweeps.laws import Estimate
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.data import power
from sweeps.study.statements import Evidence, Statement, absent, listed, verdict_of
from sweeps.study.study import Study


def pareto(study: Study) -> Statement:
    """Whether the frontiers cross."""
    found = study.dominance
    claim = "The xLSTM's loss-compute frontier lies below the Transformer's everywhere (Pareto dominance)"
    if found is None:
        return absent("pareto", claim, "needs the token/parameter runs of both architectures")
    evidence = tuple(
        Evidence(
            what=f"ln L xLSTM minus ln L Transformer along the hulls at {power(g.C)} FLOPs",
            value=g.log_loss_gap,
            form="log",
            bears_out=g.log_loss_gap.high < 0,
        )
        for g in found.gaps
    )
    decided = [g.C for g in found.gaps if g.log_loss_gap.high < 0]
    reach = (
        f" The interval leaves 0 out up to {power(max(decided))} FLOPs, and not beyond." if decided else ""
    )
    return Statement(
        key="pareto",
        quantity="ln L of the xLSTM's hull minus the Transformer's",
        claim=claim,
        verdict=verdict_of(evidence),
        comment=(
            f"{found.beaten} of {found.transformer_runs} Transformer runs are beaten by an xLSTM run at no"
            f" more compute, {found.beaten_xlstm} of {found.xlstm_runs} xLSTM runs by a Transformer"
            f" run.{reach}"
        ),
        evidence=evidence,
    )


def at_constant_ratio(study: Study) -> Statement:
    """The architectures at equal compute and one ratio."""
    evidence = tuple(
        Evidence(
            what=f"ln L xLSTM minus ln L Transformer at D/N = {g.ratio:g} and {power(g.C)} FLOPs",
            value=g.log_loss_gap,
            form="log",
            bears_out=g.log_loss_gap.high < 0,
        )
        for g in study.ratio_gaps
    )
    few = sorted({x.ratio for x in study.lines["train_flops"]} - {g.ratio for g in study.ratio_gaps})
    left = f" Not tested, for want of three runs: D/N = {listed(few)}." if few else ""
    return Statement(
        key="constant-ratio",
        quantity="ln L of the xLSTM minus the Transformer's",
        claim="In over-training, at constant tokens a parameter, the xLSTM is better at equal compute",
        verdict=verdict_of(evidence),
        comment=f"Between the lines of ln L on ln C at the middle of the computes that both cover.{left}",
        evidence=evidence,
    )


def one_slope(study: Study) -> Statement:
    """Whether the lines of an architecture are parallel."""
    claim = "Loss falls with compute at the same rate however much a model is over-trained (constant slopes)"
    if not study.parallel:
        return absent("one-slope", claim, "needs three runs at two ratios")
    kept = all(test.p_value > 1 - study.settings.level for test in study.parallel)
    tests = "; ".join(
        f"{'xLSTM' if t.arch == XLSTM else 'Transformer'}: F({t.freedom[0]}, {t.freedom[1]}) = {t.F:.2f},"
        f" p = {t.p_value:.2f}"
        for t in study.parallel
    )
    evidence = tuple(
        Evidence(
            what=f"slope shared by the ratios, {'xLSTM' if t.arch == XLSTM else 'Transformer'}",
            value=t.common_slope,
            form="slope",
            bears_out=t.p_value > 1 - study.settings.level,
        )
        for t in study.parallel
    )
    return Statement(
        key="one-slope",
        quantity="Slope of ln L on ln C",
        claim=claim,
        verdict="consistent" if kept else "contradicted",
        comment=(
            f"One slope for all ratios is not rejected ({tests}): the data are consistent with the claim,"
            " with four to seven runs a ratio."
            if kept
            else f"One slope for all ratios is rejected ({tests})."
        ),
        evidence=evidence,
    )


def slopes_differ(study: Study) -> Statement:
    """Whether the architectures share a slope."""
    claim = "At a constant ratio xLSTM and Transformer gain from compute at the same rate"
    sides = {t.arch: t.common_slope for t in study.parallel}
    if len(sides) < 2:
        return absent("slopes-differ", claim, "needs the token/parameter runs of both architectures")
    one, two = sides[XLSTM], sides[TRANSFORMER]
    half = float(np.hypot((one.high - one.low) / 2, (two.high - two.low) / 2))
    gap = one.value - two.value
    value = Estimate(value=gap, low=gap - half, high=gap + half, level=one.level, method="shared slopes")
    same = value.low <= 0 <= value.high
    single = tuple(
        Evidence(
            what=f"slope xLSTM minus slope Transformer at D/N = {g.ratio:g}",
            value=g.slope_difference,
            form="slope",
            bears_out=g.slope_difference.low <= 0 <= g.slope_difference.high,
        )
        for g in study.ratio_gaps
    )
    pooled = Evidence(
        what="slope xLSTM minus slope Transformer, one slope each for all ratios",
        value=value,
        form="slope",
        bears_out=same,
    )
    steeper = "Transformer" if gap > 0 else "xLSTM"
    return Statement(
        key="slopes-differ",
        quantity="Slope of the xLSTM minus the Transformer's",
        claim=claim,
        verdict="consistent" if same else "contradicted",
        comment=(
            "The difference of the shared slopes holds 0."
            if same
            else f"No single ratio decides it, but over all of them the {steeper}'s loss falls faster:"
            " the lead narrows as compute grows."
        ),
        evidence=(pooled, *single),
    )


def offset(study: Study) -> Statement:
    """Whether E is one number."""
    evidence = tuple(
        Evidence(
            what=(
                f"E, {'xLSTM' if o.arch == XLSTM else 'Transformer'}, {'with' if o.gamma else 'without'}"
                f" gamma, {name} runs"
            ),
            value=value,
            form="nats",
            bears_out=o.agree,
        )
        for o in study.offsets
        for name, value in sorted(o.by_set.items())
    )
    claim = "The parametric law has an irreducible loss E that the data determine"
    if not evidence:
        return absent("offset", claim, "needs runs at context 8192")
    agree = any(o.agree for o in study.offsets)
    return Statement(
        key="offset",
        quantity="E, nats",
        claim=claim,
        verdict="partly" if agree else "contradicted",
        comment=(
            "The intervals of E from the isoflop and the token/parameter runs leave each other out: what E is"
            " depends on which runs are fitted. Use the laws inside the range of their runs."
            if not agree
            else "The intervals of E agree between the sets of runs for some forms only."
        ),
        evidence=evidence,
    )
