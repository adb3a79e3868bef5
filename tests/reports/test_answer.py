"""The sentences of the first screen, word for word."""

import math
from dataclasses import replace

import polars as pl
import pytest

from reports.answer import answer, compare, decided, verdict
from reports.view import make_view
from sweeps.laws.types import Analysis, Comparison, Estimate
from tests.reports import synthetic
from tests.reports.test_predicted import FINISHED, OPEN, SAID


def a_comparison(value: float, low: float, high: float, *, decided: bool) -> Comparison:
    return Comparison(
        context_length=128,
        budget=1e12,
        better="transformer",
        other="mlstm",
        loss_difference=Estimate(value=value, low=low, high=high),
        compute_ratio=Estimate(value=1.306, low=1.18, high=1.457),
        decided=decided,
    )


def headline(analysis: Analysis, table: pl.DataFrame | None = None) -> str:
    table = synthetic.run_table() if table is None else table
    return answer(make_view(table, analysis, synthetic.provenance())).headline


def test_decided():
    said = compare(a_comparison(-0.034, -0.047, -0.021, decided=True), "nats per byte")
    assert said == (
        "The best loss of the Transformer is 0.034 nats per byte below that of the mLSTM (95% interval 0.021"
        " to 0.047). The mLSTM needs 1.31 times the compute (1.18 to 1.46) for the same loss."
    )


def test_undecided_says_that_the_interval_holds_zero():
    said = compare(a_comparison(-0.004, -0.012, 0.004, decided=False), "nats per token")
    assert said == (
        "The best loss of the Transformer is estimated 0.004 nats per token below that of the mLSTM, but the"
        " 95% interval of the difference, −0.004 to 0.012, holds 0: this decides nothing."
    )


def test_an_interval_that_holds_zero_overrules_the_flag():
    assert not decided(a_comparison(-0.004, -0.012, 0.004, decided=True))
    assert "decides nothing" in compare(a_comparison(-0.004, -0.012, 0.004, decided=True), "nats per token")


def test_no_interval_decides_nothing():
    said = compare(a_comparison(-0.004, math.nan, math.nan, decided=False), "nats per token")
    assert said.endswith("but no interval could be computed: this decides nothing.")


@pytest.mark.parametrize(
    ("ratio", "tail"),
    [
        (Estimate(value=math.inf), " By its own law the mLSTM reaches that loss at no budget."),
        (Estimate(value=math.nan), " (95% interval 0.021 to 0.047)."),
        (Estimate(value=2.0), " The mLSTM needs 2.00 times the compute for the same loss."),
        (
            Estimate(value=2.0, low=1.5, high=math.inf),
            " The mLSTM needs 2.00 times the compute (1.50 to unbounded) for the same loss.",
        ),
    ],
)
def test_compute_ratio_at_its_limits(ratio: Estimate, tail: str):
    told = replace(a_comparison(-0.034, -0.047, -0.021, decided=True), compute_ratio=ratio)
    assert compare(told, "nats per byte").endswith(tail)


def test_headline_names_architecture_size_and_tokens(analysis: Analysis):
    assert headline(analysis) == (
        "At 1.0e12 FLOPs, the Transformer beats the mLSTM: train 44.9 k parameters on 3.71 M tokens."
    )


def test_headline_undecided(analysis: Analysis):
    open_question = tuple(replace(c, decided=False) for c in analysis.comparisons)
    assert headline(replace(analysis, comparisons=open_question)) == (
        "At 1.0e12 FLOPs, these runs do not decide between the Transformer and the mLSTM."
    )


def test_extrapolated_answers_say_so_in_the_headline_and_below():
    table = synthetic.run_table()
    view = make_view(table, synthetic.analysis(table, targets=(1e13,)), synthetic.provenance())
    told = answer(view)
    assert told.headline == (
        "Extrapolated to 1.0e13 FLOPs, the Transformer beats the mLSTM: train 127 k parameters on 13.1 M"
        " tokens."
    )
    assert told.verdicts[0].sentences[-1] == (
        "This is an extrapolation: 10 times the largest budget that was trained."
    )
    assert told.others == (
        "At 1.0e12 FLOPs, the Transformer beats the mLSTM (Transformer: 44.9 k parameters on 3.71 M tokens;"
        " mLSTM: 35.4 k parameters on 4.71 M tokens).",
    )


def test_extrapolated_answers_say_that_a_hold_out_run_was_missed():
    table = synthetic.run_table()
    there, here = synthetic.analysis(table, targets=(1e13,)), synthetic.analysis(table)
    context = there.groups[0].context_length
    missed = replace(FINISHED, prediction=replace(SAID, context_length=context), observed=1.6)
    for analysed, outcome, said in ((there, missed, True), (here, missed, False), (there, OPEN, False)):
        view = make_view(table, analysed, synthetic.provenance(), None, (outcome,))
        (first,) = answer(view).verdicts
        assert first.missed == said
        assert any(s.startswith("Do not rely on it: the Transformer's") for s in first.sentences) == said


def test_one_architecture_without_comparison(analysis: Analysis):
    alone = replace(analysis, groups=analysis.groups[1:], comparisons=())
    table = synthetic.run_table().filter(pl.col("arch") == "mlstm")
    assert headline(alone, table) == (
        "At 1.0e12 FLOPs, the mLSTM does best with 35.4 k parameters on 4.71 M tokens."
    )


def test_no_optimum_is_no_answer(analysis: Analysis):
    silent = tuple(replace(group, optima=(), power_laws={}, parametric=()) for group in analysis.groups)
    assert headline(replace(analysis, groups=silent, comparisons=())) == (
        "At 1.0e12 FLOPs, the runs support no answer for the Transformer and the mLSTM."
    )


def test_one_silent_architecture_leaves_the_question_open(analysis: Analysis):
    silent = replace(analysis.groups[0], optima=(), power_laws={}, parametric=())
    half = replace(analysis, groups=(silent, analysis.groups[1]), comparisons=())
    told = answer(make_view(synthetic.run_table(), half, synthetic.provenance()))
    assert told.headline == "At 1.0e12 FLOPs, these runs support a prediction for the mLSTM alone."
    assert told.verdicts[0].standing == "undecided"
    assert told.verdicts[0].sentences == (
        "The runs support no prediction for the Transformer at this budget.",
    )


def test_a_size_outside_the_grid_is_called_that(analysis: Analysis):
    small = synthetic.run_table().filter(pl.col("N") < 44_000)
    cards = answer(make_view(small, analysis, synthetic.provenance())).verdicts[0].recommendations
    assert [card.outside for card in cards] == [True, False]
    assert cards[0].sentences[0] == (
        "Not among the sizes trained (14.9 k to 43.2 k parameters): the grid does not hold it."
    )


def test_contexts_that_agree_and_contexts_that_differ():
    table = synthetic.run_table((128, 512))
    analysis = synthetic.analysis(table, contexts=(128, 512))
    assert headline(analysis, table) == (
        "At 1.0e12 FLOPs, the Transformer beats the mLSTM, at every context length tried (128 and 512)."
    )
    turned = tuple(
        replace(c, better="mlstm", other="transformer") if c.context_length == 512 else c
        for c in analysis.comparisons
    )
    assert headline(replace(analysis, comparisons=turned), table) == (
        "At 1.0e12 FLOPs: at context 128, the Transformer beats the mLSTM; at context 512, the mLSTM beats"
        " the Transformer."
    )


def test_card_gives_intervals_ratio_and_method(analysis: Analysis):
    view = make_view(synthetic.run_table(), analysis, synthetic.provenance())
    card = answer(view).verdicts[0].recommendations[0]
    assert card.ahead
    assert card.sentences == (
        "95% intervals: 39.5 k to 50.3 k parameters, 3.27 M to 4.16 M tokens.",
        "Loss 1.657 nats per byte (1.650 to 1.663), 2.390 bits per byte.",
        "82.6 tokens a parameter.",
        "By Chinchilla, from 18 runs.",
    )


@pytest.mark.parametrize(
    ("loss", "disagree"),
    [
        (Estimate(value=1.756, low=1.70, high=1.80), True),
        (Estimate(value=1.756, low=1.60, high=1.90), False),
        (Estimate(value=1.66, low=1.659, high=1.70), False),
        (Estimate(value=1.756), False),
    ],
)
def test_a_card_says_where_two_methods_disagree(analysis: Analysis, loss: Estimate, disagree: bool):
    (first, *rest) = analysis.groups
    own = next(o for o in first.optima if o.budget == 1e12)  # 1.657, 1.650 to 1.663
    other = replace(own, method="isoflop parabolas", loss=loss)
    two = replace(analysis, groups=(replace(first, optima=(own, other)), *rest))
    card = (
        answer(make_view(synthetic.run_table(), two, synthetic.provenance())).verdicts[0].recommendations[0]
    )
    said = f"By IsoFLOP parabolas: {card.headline}, loss {loss.value:.3f}."
    if disagree:
        said += " The two losses lie outside each other's intervals: at least one of these is too narrow."
    assert card.sentences[-1] == said


def test_losses_side_by_side_are_of_the_method_that_compares_them():
    """A law that is not identified sends the comparison to the power laws: both cards then show theirs."""
    table = synthetic.run_table()
    made = synthetic.analysis(table, targets=(synthetic.TARGET,))
    groups = []
    for group in made.groups:
        law = next(o for o in group.optima if o.budget == synthetic.TARGET)
        line = replace(law, method="isoflop parabolas", loss=replace(law.loss, value=law.loss.value - 0.3))
        best_first = (law, line) if group.arch == "mlstm" else (line, law)
        groups.append(replace(group, optima=best_first))
    compared = tuple(replace(c, method="isoflop power laws") for c in made.comparisons)
    view = make_view(table, replace(made, groups=tuple(groups), comparisons=compared), synthetic.provenance())
    cards = verdict(view, 128, synthetic.TARGET).recommendations
    assert all("By IsoFLOP parabolas, from 18 runs." in card.sentences for card in cards)
