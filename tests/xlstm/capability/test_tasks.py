"""The generators against solvers written from the papers' words, and cheats against the chance level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm.capability.modular import ModularArithmetic
from xlstm.capability.parity import Parity
from xlstm.capability.recall import AssociativeRecall
from xlstm.capability.search import NearestNeighbour
from xlstm.capability.task import IGNORED, Examples, Task

TASKS: list[Task] = [
    Parity(trained=12, measured=(6, 12, 24), examples=2000),
    ModularArithmetic(trained=8, measured=(4, 8, 16), examples=2000),
    ModularArithmetic(trained=8, measured=(4, 8), examples=2000, modulus=3, operators="-*"),
    NearestNeighbour(trained=12, measured=(6, 12, 24), examples=2000),
    NearestNeighbour(trained=12, measured=(12, 24), examples=2000, angles=16, values=4),
    AssociativeRecall(trained=8, measured=(2, 4, 8, 16), examples=2000, keys=32, values=32),
]
cases = [(task, level) for task in TASKS for level in task.measured]


def names(case: tuple[Task, int]) -> str:
    return f"{case[0].kind}-{case[1]}"  # type: ignore[attr-defined]


def solve_parity(row: list[int]) -> dict[int, int]:
    return {p: sum(row[: p + 1]) % 2 for p in range(len(row))}


def solve_modular(task: ModularArithmetic, row: list[int]) -> dict[int, int]:
    """Python itself reads the expression."""
    text, answers = "", {}
    for p, token in enumerate(row):
        text += str(token) if token < task.modulus else task.operators[token - task.modulus]
        if p % 2 == 0:
            answers[p] = eval(text) % task.modulus
    return answers


def solve_search(task: NearestNeighbour, row: list[int]) -> dict[int, int]:
    """By cosine similarity of unit vectors, a strictly better one alone replacing what is held."""
    turn = 2 * np.pi / task.angles
    query, best, held, answers = (row[0] - task.values) * turn, -2.0, -1, {}
    for p, token in enumerate(row[1:], start=1):
        angle, value = divmod(token - task.values - task.angles, task.values)
        similarity = float(np.cos(angle * turn - query))
        if similarity > best + 1e-9:
            best, held = similarity, value
        answers[p] = held
    return answers


def solve_recall(task: AssociativeRecall, row: list[int]) -> dict[int, int]:
    """A dictionary of the pairs; a key that is already there is a query."""
    memory: dict[int, int] = {}
    answers = {}
    for p in range(0, len(row), 2):
        if row[p] == task.padding:
            break
        if row[p] in memory:
            answers[p] = memory[row[p]]
        memory[row[p]] = row[p + 1]
    return answers


def solution(task: Task, row: list[int]) -> dict[int, int]:
    if isinstance(task, ModularArithmetic):
        return solve_modular(task, row)
    if isinstance(task, NearestNeighbour):
        return solve_search(task, row)
    if isinstance(task, AssociativeRecall):
        return solve_recall(task, row)
    return solve_parity(row)


def accuracy(guesses: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
    """Share of answers that are right, and how many there are."""
    asked = targets != IGNORED
    return float((np.broadcast_to(guesses, targets.shape) == targets)[asked].mean()), int(asked.sum())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_answers_are_those_of_a_solver(task: Task) -> None:
    drawn = [task.training(3, 5, 20), task.selection(20), *(task.measurement(lv) for lv in task.measured)]
    for examples in drawn:
        for row, targets in zip(examples.inputs[:20].tolist(), examples.targets[:20], strict=True):
            solved = solution(task, row)
            for p in np.flatnonzero(targets != IGNORED):
                assert targets[p] == solved[p]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_training_asks_for_every_answer(task: Task) -> None:
    examples = task.training(0, 0, 50)
    for row, targets in zip(examples.inputs.tolist(), examples.targets, strict=True):
        solved = set(solution(task, row))
        if isinstance(task, ModularArithmetic):
            solved.remove(0)  # a number is its own value
        assert set(np.flatnonzero(targets != IGNORED)) == solved


@pytest.mark.parametrize(("task", "level"), cases, ids=map(names, cases))
def test_cheats_score_at_chance(task: Task, level: int) -> None:
    """Constants, copiers and counters of what was shown know nothing of the rule, and are not paid for it."""
    examples = task.measurement(level)
    targets = examples.targets
    chance = task.chance(level)
    for cheat, guesses in cheats(task, examples).items():
        right, answers = accuracy(guesses, targets)
        # Answers of one sequence depend on each other: sequences are the draws to count.
        spread = 4 * np.sqrt(chance * (1 - chance) / min(answers, len(targets)))
        assert right <= chance + spread, (cheat, right, chance)


@pytest.mark.parametrize(("task", "level"), cases, ids=map(names, cases))
def test_chance_is_reached_by_the_best_of_the_cheats(task: Task, level: int) -> None:
    """A chance level that nothing reaches would make any model look good."""
    examples = task.measurement(level)
    best = max(accuracy(guesses, examples.targets)[0] for guesses in cheats(task, examples).values())
    assert best > task.chance(level) - 0.05


def cheats(task: Task, examples: Examples) -> dict[str, np.ndarray]:
    inputs = examples.inputs
    if isinstance(task, AssociativeRecall):
        level = inputs.shape[1] // 4
        return {
            "constant": np.array(0),
            "the first value shown": inputs[:, 1:2],
            "the value shown last": inputs[:, 2 * level - 1 : 2 * level],
            "the answer before": np.roll(inputs, 1, 1),
        }
    if isinstance(task, NearestNeighbour):
        values = (inputs[:, 1:] - task.values - task.angles) % task.values
        first, last = np.broadcast_to(values[:, :1], values.shape), values
        counted = np.stack([(values == v).cumsum(1) for v in range(task.values)]).argmax(0)
        found = {"constant": np.zeros_like(values), "first": first, "last": last, "most frequent": counted}
        return {name: np.concatenate([v[:, :1], v], 1) for name, v in found.items()}
    if isinstance(task, ModularArithmetic):
        rest = np.concatenate([np.zeros_like(inputs[:, :1]), inputs[:, 1:]], 1)
        without_first = [solve_modular(task, row) for row in rest.tolist()]
        blind = np.array([[answers.get(p, 0) for p in range(inputs.shape[1])] for answers in without_first])
        return {"constant": np.array(0), "last number": inputs, "all but the first number": blind}
    return {
        "constant": np.array(1),
        "last bit": inputs,
        "first bit": inputs[:, :1],
        "all but one bit": _blind(inputs),
    }


def _blind(bits: np.ndarray) -> np.ndarray:
    """Parity without the second bit."""
    others = bits.copy()
    others[:, 1] = 0
    return others.cumsum(1) % 2


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_draws_are_functions_of_seed_and_step(task: Task) -> None:
    again = task.training(1, 7, 8), task.training(1, 7, 8)
    assert all(np.array_equal(a, b) for a, b in zip(*again, strict=True))
    others = [task.training(2, 7, 8), task.training(1, 8, 8), task.selection(8)]
    assert all(not np.array_equal(again[0].inputs, other.inputs) for other in others)


@pytest.mark.parametrize(("task", "level"), cases, ids=map(names, cases))
def test_tokens_fit_the_vocabulary(task: Task, level: int) -> None:
    examples = task.measurement(level)
    assert examples.inputs.shape == (task.examples, task.length(level))
    assert examples.inputs.min() >= 0
    assert examples.inputs.max() < task.vocab_size
    asked = examples.targets[examples.targets != IGNORED]
    assert asked.min() >= 0
    assert asked.max() < task.vocab_size


def test_levels_divide_the_answers_among_them() -> None:
    task = Parity(trained=8, measured=(4, 8, 20), examples=10)
    asked = [np.flatnonzero(task.measurement(lv).targets[0] != IGNORED) + 1 for lv in task.measured]
    assert [(places.min(), places.max()) for places in asked] == [(2, 4), (5, 8), (9, 20)]


@settings(derandomize=True, max_examples=40)
@given(pairs=st.integers(1, 12), fewest=st.integers(1, 12), seed=st.integers(0, 99))
def test_short_sequences_of_recall_are_padded_and_whole(pairs: int, fewest: int, seed: int) -> None:
    task = (
        AssociativeRecall(
            trained=pairs, measured=(max(2, pairs),), keys=16, values=16, fewest=min(fewest, pairs)
        )
        if pairs >= 2
        else AssociativeRecall(trained=2, measured=(2,), keys=16, values=16)
    )
    examples = task.training(seed, 0, 16)
    for row, targets in zip(examples.inputs, examples.targets, strict=True):
        tokens = row[row != task.padding]
        n = len(tokens) // 4
        assert len(tokens) == 4 * n
        assert task.fewest <= n <= task.trained
        assert len(set(tokens[: 2 * n])) == 2 * n
        assert (targets != IGNORED).sum() == n
        assert np.array_equal(row[np.flatnonzero(targets != IGNORED) + 1], targets[targets != IGNORED])


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (Parity, {"trained": 0}, "Parity.trained = 0"),
        (Parity, {"measured": (8, 4)}, "ascending"),
        (Parity, {"examples": 0}, "Parity.examples = 0"),
        (ModularArithmetic, {"operators": "*"}, "operators = '*'"),
        (ModularArithmetic, {"operators": "+/"}, "operators = '+/'"),
        (ModularArithmetic, {"modulus": 1}, "modulus = 1"),
        (NearestNeighbour, {"angles": 1}, "angles = 1"),
        (AssociativeRecall, {"keys": 4}, "keys = 4: 8 pairs"),
        (AssociativeRecall, {"fewest": 9}, "fewest = 9"),
    ],
)
def test_impossible_tasks_are_refused_by_name(kind: type[Task], fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match="^" + kind.__name__) as refusal:
        kind(**{"trained": 8, "measured": (4, 8), **fields})
    assert words in str(refusal.value)


def test_search_keeps_what_is_equally_near() -> None:
    task = NearestNeighbour(trained=4, measured=(4,), angles=8, values=2)
    query, near = 3, [(5, 0), (1, 1), (4, 1), (2, 0)]  # two and two steps away, then one and one
    row = [task.values + query, *(task.values + task.angles + a * task.values + v for a, v in near)]
    assert [solve_search(task, row)[p] for p in range(1, 5)] == [0, 0, 1, 1]
    assert task._nearest(np.array([[query]]), np.array([[a for a, _ in near]])).tolist() == [[0, 0, 2, 2]]
