"""The analyses of *xLSTM Scaling Laws* (arXiv:2510.02228) over a run table: by its method, and by ours.

Every module holds one analysis as pure functions of runs or measurements; `study` joins them for the report.
`printed` holds what the paper and its repository print, `reproduction` sets ours beside it.
"""

from sweeps.study.study import Study, StudySettings, fittable, make_study

__all__ = ["Study", "StudySettings", "fittable", "make_study"]
