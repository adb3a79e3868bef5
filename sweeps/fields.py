"""What the sections of a spec are made of: kinds of numbers, architectures, values by architecture."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from xlstm.arch_names import canonical_arch

Arch = Annotated[str, AfterValidator(canonical_arch)]
"""mlstm, transformer, lstm, slstm, xlstm[a:b] and its ablations, by the names of `xlstm.arch_names`."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping of a spec: it does not change, and takes no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _arch_or_all(name: str) -> str:
    return name if name == "all" else canonical_arch(name)


ArchOrAll = Annotated[str, AfterValidator(_arch_or_all)]


def for_all(value: Any) -> Any:
    """Values by architecture as they are; any other becomes the one for all."""
    by_arch = isinstance(value, dict) and any(_names_archs(key) for key in value)
    return value if by_arch else {"all": value}


def _names_archs(key: Any) -> bool:
    try:
        _arch_or_all(str(key))
    except ValueError:
        return False
    return True


T = TypeVar("T")


def pick(by_arch: dict[ArchOrAll, T], arch: Arch) -> T:
    """The entry of `arch`, or else the one for all."""
    return by_arch[arch] if arch in by_arch else by_arch["all"]


PerArchCount = Annotated[
    dict[ArchOrAll, Count], BeforeValidator(for_all, json_schema_input_type=Count | dict[ArchOrAll, Count])
]
