"""The command `isoflop generate`: what a trained model writes."""

import sys
from typing import Annotated

import typer

from tasks.errors import UserError

Model = Annotated[
    str,
    typer.Argument(
        help="a run's name or key, or a folder: a run, Hugging Face's xLSTM or Llama, xlstm_large"
    ),
]


def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="text to continue; several times for several texts")
    ] = None,
    tokens: Annotated[int, typer.Option(help="at most, for each text")] = 200,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 samples as trained")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="sample from this many likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="and from the fewest that hold this share")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed writes the same text")] = None,
    go_on: Annotated[bool, typer.Option("--past-the-end", help="go on behind the end of a document")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU by default")] = None,
    dtype: Annotated[str | None, typer.Option(help="of the weights: float32 or bfloat16")] = None,
    state_dtype: Annotated[str, typer.Option(help="of an mLSTM's state: float32 or bfloat16")] = "float32",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="a tokenizers JSON file, or bytes; the one it was trained with by default"),
    ] = None,
) -> None:
    """Continue text with a trained model. Without --prompt: standard input, or in turns with you."""
    from tasks.generating import Request, Writer
    from tasks.state import open_state

    request = Request(
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_at_end=not go_on,
        device=device,
        dtype=dtype,
        state_dtype=state_dtype,
    )
    writer = Writer(model, open_state(), request, tokenizer)
    if not prompts and sys.stdin.isatty():
        _in_turns(writer)
        return
    texts = prompts or [sys.stdin.read()]
    if notice := writer.notice(texts):
        print(f"note: {notice}", file=sys.stderr)
    if len(texts) == 1:
        print(texts[0], end="", flush=True)
        for piece in writer.talk().answer(texts[0]):
            print(piece, end="", flush=True)
        print()
        return
    for prompt, text in zip(texts, writer.write(texts), strict=True):
        print(f"{prompt}{text}\n")


def _in_turns(writer: object) -> None:
    """Lines of a person and what the model makes of them, until the end of input."""
    from tasks.generating import Writer

    assert isinstance(writer, Writer)
    talk = writer.talk()
    print("end with Ctrl-D", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            for piece in talk.answer(line):
                print(piece, end="", flush=True)
        except UserError as error:
            print(f"isoflop: {error}", file=sys.stderr)
        print()
