"""How long a model takes to answer, measured: points of a grid, their measurement, a process for each.

`points` is light. `measure` needs torch; neither needs Lightning, Prefect, MLflow or pydantic.
"""
