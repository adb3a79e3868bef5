"""Times as people write them: `540`, `90s`, `8m`, `1.5h`."""

import math
import re

from tasks.errors import UserError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """Seconds of a time; UserError for anything that is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", text)
    value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{text!r} is no time: write seconds, or a number with s, m, h or d, as 8m or 1.5h")
    return value
