"""The figures: panels of charts that share colours and scales, each with a caption that says what to see."""

from reports.figures.charts import CONFIG, Figure, Panel, Swatch
from reports.figures.comparison import baseline, comparison
from reports.figures.export import save
from reports.figures.isoflop import isoflop
from reports.figures.laws import contexts, power_laws
from reports.figures.surface import surface

__all__ = [
    "CONFIG",
    "Figure",
    "Panel",
    "Swatch",
    "baseline",
    "comparison",
    "contexts",
    "isoflop",
    "power_laws",
    "save",
    "surface",
]
