"""The examples of docs/laws.md run as they are printed."""

import re
from pathlib import Path

from sweeps.laws import LAWS

PAGE = (Path(__file__).parents[3] / "docs" / "laws.md").read_text(encoding="utf-8")


def test_python_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "docs/laws.md", "exec"), {})


def test_every_law_is_listed() -> None:
    for name in LAWS:
        assert f"`{name}`" in PAGE
