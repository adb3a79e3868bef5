"""Published runs of others as our run table: pickles read as data, tidy tables, loss curves, measurements."""

from sweeps.published.pickles import PickleRefused
from sweeps.published.schema import CURVES_SCHEMA, INFERENCE_SCHEMA, PUBLISHED_SCHEMA
from sweeps.published.study import Note, PublishedError, PublishedStudy, read_published

__all__ = [
    "CURVES_SCHEMA",
    "INFERENCE_SCHEMA",
    "PUBLISHED_SCHEMA",
    "Note",
    "PickleRefused",
    "PublishedError",
    "PublishedStudy",
    "read_published",
]
