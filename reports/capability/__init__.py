"""The page of a capability suite: what each architecture can do, and how the papers' claims stand."""

from reports.capability.page import headline, render, sentences

__all__ = ["headline", "render", "sentences"]
