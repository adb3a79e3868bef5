"""From the name of a profile to a capability suite. No Prefect here: the command line reads specs too."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sweeps.capability.fields import CapabilityError
from sweeps.capability.spec import CapabilitySpec, find_suite, load_suite
from sweeps.resources import Resources


def read_suite(profile: str, overrides: Mapping[str, Any] | None = None) -> tuple[CapabilitySpec, Resources]:
    """The suite of a profile, and what its runs get. CapabilityError, one line."""
    spec = load_suite(profile, overrides)
    try:
        return spec, Resources.model_validate(dict(spec.resources))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise CapabilityError(
            f"{find_suite(profile).name}: resources.{key} = {fault['input']!r}: {fault['msg']}"
        ) from error
