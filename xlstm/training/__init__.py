"""Training one run. `job` is light; `run` imports torch, Lightning and MLflow."""
