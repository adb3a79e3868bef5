"""Text from a trained model, for the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tasks.errors import UserError
from tasks.models import Found, dtype_named, open_model
from tasks.state import State
from xlstm.data.tokenizers import Tokenizer
from xlstm.generation import (
    MemoryLimitError,
    PromptError,
    Sampling,
    Session,
    generate,
    inference_model,
    stream,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to write."""

    tokens: int
    """At most, for each prompt."""
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_at_end: bool = True
    """Whether the token that ends a document ends a text."""
    device: str | None = None
    """None: a GPU where there is one."""
    dtype: str | None = None
    """None: bfloat16 on a GPU, float32 elsewhere."""
    state_dtype: str = "float32"


class Writer:
    """A model that is ready, and its tokenizer."""

    def __init__(self, name: str, state: State, request: Request, tokenizer: str | None = None) -> None:
        """UserError where the model, the device or a number of the request cannot be."""
        if request.tokens < 1:
            raise UserError(f"--tokens {request.tokens}: must be at least 1")
        try:
            self.sampling = Sampling(
                temperature=request.temperature, top_k=request.top_k, top_p=request.top_p
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        device = _device(request.device)
        dtype = dtype_named(request.dtype, "--dtype") if request.dtype else None
        self.state_dtype = dtype_named(request.state_dtype, "--state-dtype")
        self.request = request
        self.found: Found = open_model(name, state, tokenizer=tokenizer)
        if self.found.tokenizer is None:
            raise UserError(
                f"{self.found.folder}: nothing here says how it reads text: give --tokenizer, the path of a"
                " tokenizers JSON file or bytes"
            )
        self.tokenizer: Tokenizer = self.found.tokenizer
        default = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = inference_model(self.found.loaded.model, dtype or default, device)

    def notice(self, prompts: Sequence[str]) -> str | None:
        """What to know before reading: a Transformer beyond what it was trained on."""
        known = self.found.context_length
        longest = max(len(self._read(prompt)) for prompt in prompts) + self.request.tokens
        if self.model.config.arch != "transformer" or known is None or longest <= known:
            return None
        return (
            f"trained on {known} tokens of context, asked for {longest}: expect nothing of what lies beyond"
        )

    def write(self, prompts: Sequence[str]) -> list[str]:
        """A continuation of each prompt, all at once."""
        with _one_line():
            texts = generate(
                self.model,
                [self._read(prompt) for prompt in prompts],
                self.request.tokens,
                sampling=self.sampling,
                seed=self.request.seed,
                stop=self._stop,
                state_dtype=self.state_dtype,
            )
        return [self.tokenizer.decode(text.tokens) for text in texts]

    def talk(self) -> "Talk":
        """A text that grows in turns."""
        return Talk(self)

    def _read(self, prompt: str) -> list[int]:
        """The tokens of a prompt; an empty one is the beginning of a document."""
        return self.tokenizer.encode([prompt])[0].tolist() or [self.tokenizer.separator]

    @property
    def _stop(self) -> tuple[int, ...]:
        return (self.tokenizer.separator,) if self.request.stop_at_end else ()


class Talk:
    """One text, that a person and a model write in turns; the model remembers all of it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._session: Session | None = None
        self._unread: list[int] = []

    def answer(self, prompt: str) -> Iterator[str]:
        """What the model goes on with, piece by piece as it comes."""
        writer, request = self._writer, self._writer.request
        prompt_tokens = self._unread + writer._read(prompt)
        written: list[int] = []
        shown = ""
        with _one_line():
            if self._session is None:
                room = len(prompt_tokens) + request.tokens
                self._session = Session(writer.model, 1, room, state_dtype=writer.state_dtype)
            for token in stream(
                self._session,
                [prompt_tokens],
                request.tokens,
                sampling=writer.sampling,
                seed=request.seed,
            ):
                written.append(int(token))
                if written[-1] in writer._stop:
                    break
                text = writer.tokenizer.decode(written)
                if not text.endswith("\ufffd"):  # half a character: the rest is to come
                    yield text[len(shown) :]
                    shown = text
        self._unread = written[-1:]  # chosen, and not yet read by the model
        rest = writer.tokenizer.decode([token for token in written if token not in writer._stop])
        if len(rest) > len(shown):
            yield rest[len(shown) :]


class _one_line:
    """Errors of a prompt are the user's to mend."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PromptError | MemoryLimitError):
            raise UserError(str(error)) from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: write cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: write cpu, cuda or cuda:1")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} GPUs")
    return device
