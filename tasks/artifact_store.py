"""Where MLflow keeps artifacts: the state folder, or a bucket that speaks S3, tried before anything trains.

Keys come from where boto3 looks for them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, an instance's
role) and stand nowhere else: not in the setting, and so in no database, command line or log of ours.
"""

import os
from urllib.parse import SplitResult, urlsplit

from tasks.errors import UserError
from tasks.state import ARTIFACTS_VARIABLE, State
from xlstm.training.failures import redact

ENDPOINT_VARIABLE = "MLFLOW_S3_ENDPOINT_URL"
"""MLflow's own: the address of a store that is not Amazon's."""
MARKER = ".isoflop"
"""The object that the trial writes."""
PATIENCE_S = 5
_KEYS = "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def ensure_artifact_store(state: State) -> None:
    """UserError where artifacts could not be written: better now than at the end of a training."""
    if (fault := artifact_store_fault(state)) is not None:
        raise UserError(fault)


def artifact_store_fault(state: State) -> str | None:
    """What keeps artifacts from their store, in one line with its cure; None where one was written."""
    root = urlsplit(state.artifact_root)
    if root.scheme in ("", "file"):
        return None
    said = f"{ARTIFACTS_VARIABLE} = {redact(state.artifact_root)}"
    if root.scheme != "s3" or not root.netloc or "@" in root.netloc:
        return f"{said}: must be s3://bucket/folder; {_KEYS}"
    try:
        return _trial(root, said)
    except ModuleNotFoundError as error:
        return f"{said}: {error.name} is not installed: pip install 'isoflop[s3]'"


def _trial(root: SplitResult, said: str) -> str | None:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    endpoint = os.environ.get(ENDPOINT_VARIABLE) or None
    config = Config(
        connect_timeout=PATIENCE_S,
        read_timeout=PATIENCE_S,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    key = "/".join(part for part in (root.path.strip("/"), MARKER) if part)
    try:
        client = boto3.Session().client("s3", endpoint_url=endpoint, config=config)
        client.put_object(Bucket=root.netloc, Key=key, Body=b"")
    except NoCredentialsError:
        return f"{said}: no credentials were found: {_KEYS}"
    except ClientError as error:
        code = error.response["Error"].get("Code")
        return f"{said}: the store refuses to write there ({code}): see to bucket and policy; {_KEYS}"
    except (BotoCoreError, Boto3Error, ValueError) as error:
        reason = redact(" ".join(str(error).split()))[:200]
        return f"{said}: the store does not answer: {reason}: see {ENDPOINT_VARIABLE}"
    return None
