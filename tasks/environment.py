"""What Prefect and MLflow must find in their environment, set before either is imported."""

import os
from dataclasses import dataclass

from tasks.processes import LOOPBACK
from tasks.state import State

PREFECT_DATABASE_VARIABLE = "ISOFLOP_PREFECT_DATABASE"
"""A PostgreSQL for Prefect, postgresql+asyncpg://user:password@host/database; SQLite without it."""


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where the services of a state folder listen."""

    prefect_port: int
    mlflow_port: int

    @property
    def prefect_ui(self) -> str:
        return f"http://{LOOPBACK}:{self.prefect_port}"

    @property
    def prefect_api(self) -> str:
        return f"{self.prefect_ui}/api"

    @property
    def mlflow_ui(self) -> str:
        return f"http://{LOOPBACK}:{self.mlflow_port}"


def environment(state: State, endpoints: Endpoints | None = None) -> dict[str, str]:
    """This process's environment with the settings of the embedded services on top."""
    settings = {
        "ISOFLOP_HOME": str(state.home),
        "PREFECT_HOME": str(state.prefect_home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_TRACKING_URI": state.tracking_uri,
        # In the environment and not on the command line, where every user of the machine reads passwords.
        "MLFLOW_BACKEND_STORE_URI": state.tracking_uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": state.artifact_root,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if database := os.environ.get(PREFECT_DATABASE_VARIABLE):
        settings |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    if endpoints is not None:
        settings |= {"PREFECT_API_URL": endpoints.prefect_api, "ISOFLOP_MLFLOW_URL": endpoints.mlflow_ui}
    return {**os.environ, **settings}


def client_settings(endpoints: Endpoints) -> dict[str, str]:
    """What `prefect` and `mlflow` in a user's shell need to meet the services, without any password."""
    return {
        "PREFECT_API_URL": endpoints.prefect_api,
        "MLFLOW_TRACKING_URI": endpoints.mlflow_ui,
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def enter(state: State, endpoints: Endpoints | None = None) -> None:
    """Take on `environment` in this process. Call it before Prefect or MLflow is imported."""
    os.environ.update(environment(state, endpoints))
