"""`isoflop pack` and `isoflop unpack`: a sweep goes on on another machine."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tasks.errors import UserError
from tasks.pack import pack as write_archive
from tasks.state import open_state
from tasks.unpack import unpack as read_archive

console = Console()
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def pack(
    archive: Annotated[Path, typer.Argument(help="file to write, as sweeps.tar.xz")],
    corpora: Annotated[bool, typer.Option("--corpora", help="take the tokenised corpora along")] = False,
    part_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="write ARCHIVE.000 and so on, at most 16MiB each, say")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="of all of it; checkpoints that do not fit stay, the largest first"
        ),
    ] = None,
) -> None:
    """Write runs, records, reports and the checkpoints of unfinished runs to an archive."""
    packed = write_archive(
        open_state(),
        archive.absolute(),
        corpora=corpora,
        part_bytes=None if part_size is None else size(part_size),
        limit_bytes=None if limit is None else size(limit),
    )
    names = ", ".join(str(path) for path in packed.files)
    said = f"{names}: {packed.bytes / 2**20:.1f} MiB, {packed.checkpoints} checkpoints"
    console.print(said, highlight=False, soft_wrap=True)
    for name in packed.left_behind:
        console.print(f"no room for {name}: its run starts again", highlight=False, soft_wrap=True)


def unpack(
    archive: Annotated[Path, typer.Argument(help="what `isoflop pack` wrote; the name without .000")],
    replace: Annotated[
        bool, typer.Option("--replace", help="move the runs that are here aside, into replaced-000")
    ] = False,
) -> None:
    """Put an archive's runs into the state folder: the same sweep command goes on from there."""
    state = open_state()
    manifest = read_archive(state, archive.absolute(), replace=replace)
    console.print(
        f"{state.home}: as {manifest.home} was at {manifest.made_at}", highlight=False, soft_wrap=True
    )


def size(text: str) -> int:
    """Bytes of a size as people write it: `16MiB`; UserError for anything else."""
    match = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB)", text.strip())
    if match is None or int(match[1]) == 0:
        raise UserError(f"{text!r} is no size: write bytes, or a number with KiB, MiB or GiB, as 16MiB")
    return int(match[1]) * _UNITS[match[2]]
