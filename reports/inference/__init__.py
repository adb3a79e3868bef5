"""The page of an inference benchmark: `render` makes it, `sentences` are its answer in words."""

from reports.inference.page import render, sentences

__all__ = ["render", "sentences"]
