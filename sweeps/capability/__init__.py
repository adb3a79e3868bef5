"""Capability suites: which tasks, models and seeds; the runs they make; what their results say.

`spec` reads a profile, `plan` lays out its runs, `results` chooses learning rates and makes intervals,
`claims` holds the papers' claims against them. Standard library, numpy and scipy alone, so that a bare GPU
machine measures with the same code.
"""
