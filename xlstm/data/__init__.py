"""Text to tokens on disk, and tokens on disk to batches. Needs numpy, and torch not at all."""

from xlstm.data.corpus import Corpus, CorpusMeta, SplitMeta, load_corpus
from xlstm.data.prepare import prepare_corpus
from xlstm.data.spec import CorpusError, CorpusSpec
from xlstm.data.stream import TokenStream, validation_windows

__all__ = [
    "Corpus",
    "CorpusError",
    "CorpusMeta",
    "CorpusSpec",
    "SplitMeta",
    "TokenStream",
    "load_corpus",
    "prepare_corpus",
    "validation_windows",
]
