"""Models as files, in our layout and in the official ones: read, checked, written.

    model, kind = load_checkpoint(folder)                   # ours, Hugging Face's or xlstm_large's: it tells
    save_checkpoint(model, folder, "hf")                    # or "xlstm_large"

`files` reads and writes safetensors, `weights` checks names, shapes and dtypes, `fused` joins and splits
matrices; `hf_xlstm`, `hf_llama` and `xlstm_large` are the layouts, `ours` is what a training leaves.
docs/checkpoints.md maps the names.
"""

from xlstm.checkpoints.errors import CheckpointError
from xlstm.checkpoints.fused import fuse, split_fused
from xlstm.checkpoints.load import load_checkpoint, loadable
from xlstm.checkpoints.save import FORMATS, save_checkpoint

__all__ = [
    "FORMATS",
    "CheckpointError",
    "fuse",
    "load_checkpoint",
    "loadable",
    "save_checkpoint",
    "split_fused",
]
