"""Times as people write them."""

import pytest

from flows.durations import seconds
from tasks.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"), [("540", 540.0), ("90s", 90.0), ("8m", 480.0), (" 1.5h ", 5400.0), ("2 d", 172_800.0)]
)
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "8 min", "1e3", "nan", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time: write seconds"):
        seconds(text)
