"""How a token is chosen, against the definitions written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm.generation import Sampling, choose
from xlstm.generation.sampling import probabilities


def by_definition(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """Probabilities of one row: temperature, the k likeliest, the fewest that hold p."""
    chances = np.exp(logits / temperature - (logits / temperature).max())
    order = np.argsort(-logits, kind="stable")
    if top_k is not None:
        chances[order[top_k:]] = 0
    chances /= chances.sum()
    if top_p is not None:
        held = 0.0
        for token in order:
            if held >= top_p:
                chances[token] = 0
            held += chances[token]
    return chances / chances.sum()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12, unique=True),
    st.floats(0.1, 4),
    st.none() | st.integers(1, 20),
    st.none() | st.sampled_from([0.05, 0.3, 0.77, 0.999, 1.0]),
)
def test_probabilities(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    row = np.array(logits)
    ours = probabilities(torch.from_numpy(np.stack([row, row[::-1]])), sampling).numpy()
    for found, given_logits in zip(ours, (row, row[::-1]), strict=True):
        expected = by_definition(given_logits, temperature, top_k, None if top_p == 1 else top_p)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_likeliest_token_always_stays() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0]])
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=0)):
        assert [int(choose(logits, sampling)) for _ in range(20)] == [1] * 20


@pytest.mark.parametrize("temperature", [1e-37, 1e-39, 1e-300])
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[-9.0, 30.0, 29.0]])
    sampling = Sampling(temperature=temperature)
    assert probabilities(logits, sampling).tolist() == [[0.0, 1.0, 0.0]]
    assert int(choose(logits, sampling)) == 1


def test_draws_stay_within_what_is_allowed() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50).expand(3000, -1)
    drawn = choose(logits, Sampling(temperature=1.5, top_k=7), torch.Generator().manual_seed(1))
    assert set(drawn.tolist()) == set(logits[0].topk(7).indices.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature = -0\.1: must be 0 or more"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"top_p": 0.0}, r"top_p = 0\.0: must be above 0"),
        ({"top_p": 1.01}, r"top_p = 1\.01"),
    ],
)
def test_bad_numbers(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
