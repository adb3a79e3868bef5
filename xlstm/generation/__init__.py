"""Text from a model, of either architecture, through one interface.

    texts = generate(model, prompts, 100, sampling=Sampling(temperature=0.8, top_p=0.95), seed=1)

    session = Session(model, batch_size=8, capacity=4096)    # state in buffers that do not move
    logits = session.prefill(prompts)                        # chunkwise, ragged prompts without padding
    logits = session.step()                                  # one token each; a CUDA graph on a GPU

`session` holds the state, `graphs` the capture, `prompts` what may be asked, `sampling` how a token is
chosen, `memory` what it takes and the refusal of what does not fit, `prepare` models for inference.
"""

from xlstm.generation.generate import Continuation, generate, stream
from xlstm.generation.memory import Footprint, MemoryLimitError, footprint
from xlstm.generation.prepare import inference_model, random_model
from xlstm.generation.prompts import PromptError
from xlstm.generation.sampling import Sampling, choose
from xlstm.generation.session import Session

__all__ = [
    "Continuation",
    "Footprint",
    "MemoryLimitError",
    "PromptError",
    "Sampling",
    "Session",
    "choose",
    "footprint",
    "generate",
    "inference_model",
    "random_model",
    "stream",
]
