"""The figures: panels of charts that share colours and scales, each with a caption that says what to see."""

from reports.figures.charts import CONFIG, Figure, Panel, Swatch
from reports.figures.comparison import baseline, comparison
from reports.figures.contours import contours
from reports.figures.costs import decode_costs
from reports.figures.curves import curves
from reports.figures.export import save
from reports.figures.frontier import frontier
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
    "contours",
    "curves",
    "decode_costs",
    "frontier",
    "isoflop",
    "power_laws",
    "save",
    "surface",
]
