"""Where the authors erred about inference: how runtimes were fitted, and what a step was said to read."""

import numpy as np

from sweeps.laws import Estimate
from sweeps.study import printed
from sweeps.study.contexts import TRANSFORMER, XLSTM
from sweeps.study.erratum import NAN, Erratum, ErratumRow, plain
from sweeps.study.inference import (
    RuntimeFit,
    model_config,
    our_step_bytes,
    paper_measurements,
    their_step_bytes,
)
from sweeps.study.study import Study

NO_ESTIMATE = Estimate(value=NAN)


def resampled(study: Study) -> Erratum:
    """Fits that saw one bootstrap resample of their rows."""
    known = {(p.kind, p.model): p for p in printed.RUNTIMES}
    rows = []
    for f in study.runtimes:
        p = known.get((f.kind, f.model))
        if f.kind != "ttft" or p is None:
            continue
        rows += _runtime_rows(f, p)
    used = [f.unique_used / f.n for f in study.runtimes]
    share = f"{100 * min(used):.0f} to {100 * max(used):.0f} %" if used else "a part"
    return Erratum(
        key="resampled",
        title="Inference fits of one bootstrap resample",
        what_happened=(
            "The objective of the inference fits draws a bootstrap resample with seed 0 unless told"
            f" otherwise, and is never told otherwise: every published fit saw {share} of its rows, some"
            " several times. It also minimises the squares of Huber values in milliseconds, so that the"
            " longest times decide."
        ),
        what_it_does=(
            "Rates move by up to 3 %, overheads change sign, and short times are off by 10 to 60 %. Ours fit"
            " relative errors of every row, with overheads that cannot fall below zero."
        ),
        rows=tuple(rows),
    )


def _runtime_rows(f: RuntimeFit, p: printed.PrintedRuntime) -> list[ErratumRow]:
    ours = {} if f.ours is None else f.ours.params
    return [
        ErratumRow(
            what=f"FLOP/s of the TTFT, {f.model}",
            form="rate",
            published=p.rate,
            repeated=f.all_rows.rate,
            ours=ours.get("flops_per_s", NO_ESTIMATE),
        ),
        ErratumRow(
            what=f"overhead of the TTFT, {f.model}",
            form="seconds",
            published=p.overhead,
            repeated=f.all_rows.overhead,
            ours=ours.get("overhead", NO_ESTIMATE),
        ),
        ErratumRow(
            what=f"mean relative error of the TTFT, {f.model}",
            form="error",
            published=p.mape,
            repeated=f.all_rows.mape,
            ours=plain(f.ours_mape),
        ),
    ]


def step_bytes(study: Study) -> Erratum:
    """A Transformer's decode step, said to read its weights once in a hundred."""
    rows = []
    if study.inference.height:
        table = paper_measurements(study.inference)
        known = {(p.kind, p.model): p for p in printed.RUNTIMES}
        for f in (f for f in study.runtimes if f.kind == "step_time" and f.arch == TRANSFORMER):
            config = model_config(table.filter(table["model"] == f.model).row(0, named=True))
            T, B = np.array([2048.0]), np.array([1.0])
            rows.append(
                ErratumRow(
                    what=f"bytes of a step after 2,048 tokens, {f.model}",
                    form="bytes",
                    published=printed.STEP_BYTES if f.model == "llama2_1.4b" else NAN,
                    repeated=float(their_step_bytes(config, T, B)[0]),
                    ours=plain(float(our_step_bytes(config, T, B)[0])),
                )
            )
            if f.ours is not None:
                rows.append(
                    ErratumRow(
                        what=f"bandwidth of the cache, {f.model}",
                        form="rate",
                        published=known["step_time", f.model].rate,
                        repeated=f.all_rows.rate,
                        ours=f.ours.params["bytes_per_s"],
                    )
                )
                rows.append(
                    ErratumRow(
                        what=f"constant time of a step, {f.model}",
                        form="seconds",
                        published=known["step_time", f.model].overhead,
                        repeated=f.all_rows.overhead,
                        ours=f.ours.params["overhead"],
                    )
                )
    return Erratum(
        key="bytes",
        title="Decode bytes that count the weights once in 100 steps",
        what_happened=(
            "The bytes of a Transformer's step are those of generating 100 tokens at once, divided by 100:"
            " the weights are read once for all of them."
        ),
        what_it_does=(
            "A step of the llama2 1.4B moves less than its weights. The published constant of the fit takes"
            " the read of the weights in, and its bandwidth is that of the cache alone, as ours below says"
            " openly. One bandwidth for both does not hold: it misses the largest models by 5 to 6 % where"
            " 1.4 % is reached."
        ),
        rows=tuple(rows),
    )


def collinear(study: Study) -> Erratum:
    """An xLSTM's step time, fitted with more parameters than the data tell apart."""
    known = {(p.kind, p.model): p for p in printed.RUNTIMES}
    rows = [
        ErratumRow(
            what=f"bandwidth of a step, {f.model}",
            form="rate",
            published=known[f.kind, f.model].rate,
            repeated=f.all_rows.rate,
            ours=NO_ESTIMATE if f.ours is None else f.ours.params["bytes_per_s"],
        )
        for f in study.runtimes
        if f.kind == "step_time" and f.arch == XLSTM and (f.kind, f.model) in known
    ]
    return Erratum(
        key="collinear",
        title="Three parameters for two dimensions: the xLSTM's step time",
        what_happened=(
            "The bytes of an xLSTM's step do not depend on the prefill: they are a constant plus B times a"
            " constant. Bandwidth, overhead and time per sequence are then three columns in two dimensions,"
            " and any bandwidth fits as well as any other."
        ),
        what_it_does=(
            "The published bandwidths reach from 2 TB/s to 2,000 TB/s, and refitted they change by any"
            " factor, at equal error. Without the time per sequence the form is identified, and gives 1.8 to"
            " 2.8 TB/s of the H100's 3.35."
        ),
        rows=tuple(rows),
    )
