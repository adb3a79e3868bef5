"""The command `isoflop export`: a model for others to load."""

from pathlib import Path
from typing import Annotated

import typer

from flows.generate_command import Model


def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="to write; new or empty")],
    layout: Annotated[
        str, typer.Option("--format", help="hf (transformers: xLSTM or Llama) or xlstm_large (package xlstm)")
    ] = "hf",
    weight_mode: Annotated[str, typer.Option(help="single, or fused for Hugging Face's xLSTM")] = "single",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; as trained by default")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="a tokenizers JSON file, or bytes; the one it was trained with by default"),
    ] = None,
) -> None:
    """Write a model in an official layout: safetensors, configuration, tokenizer, and a card."""
    from tasks.exporting import export_model
    from tasks.state import open_state

    found = export_model(
        model,
        folder,
        open_state(),
        layout=layout,
        weight_mode=weight_mode,
        dtype=dtype,
        tokenizer=tokenizer,
    )
    if found.tokenizer is None:
        print("no tokenizer is known: give --tokenizer to have one beside the weights")
    print(folder)
