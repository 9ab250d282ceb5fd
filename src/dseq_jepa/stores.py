"""MLflow stores: where they are, how they are opened, and one sentence for whatever they answer.

with answering(uri):                 # MLflow's errors become UserError, without credentials
    make_tables(uri)
    MlflowClient(tracking_uri=uri)
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dseq_jepa.errors import UserError
from dseq_jepa.lock import locked
from dseq_jepa.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_REFUSED = re.compile(r"error code 40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED")  # run ids may hold 401 too
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def store_uri(results: Path, uri: str | None = None) -> str:
    """The store of a results folder: the one given, else MLFLOW_TRACKING_URI, else sqlite in the folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve() / 'mlflow.db'}"


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn everything that a store can answer, or not answer, into one sentence without credentials."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, CommandError, OSError) as error:
        raise UserError(_sentence(uri, masked(str(error)))) from error


def _sentence(uri: str, message: str) -> str:
    where = f"MLflow store {masked(uri)}"
    short = message.splitlines()[0][:300] if message else "no reason given"
    if "schema" in message and "upgrade" in message:
        return (
            f"{where} was made by an older MLflow; copy it, then run `mlflow db upgrade {masked(uri)}` and sync again."
        )
    if "Can't locate revision" in message:
        return f"{where} was made by a newer MLflow; install that version or choose another store."
    if _REFUSED.search(short):
        return (
            f"{where} refuses: {short}. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Nothing is lost: "
            "the journals hold everything; run `dseq-jepa sync` again."
        )
    verb = "does not answer" if is_server(uri) else "failed"
    return f"{where} {verb}: {short}. Nothing is lost: the journals hold everything; run `dseq-jepa sync` again."


def is_server(uri: str) -> bool:
    """Whether a store is behind HTTP, and not a database that this process opens itself."""
    return urlsplit(uri).scheme in ("http", "https")


def check_place(uri: str) -> None:
    """Say what is wrong with a store's address before MLflow says it in ten lines."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise UserError(
            f"MLFLOW_TRACKING_URI {masked(uri)!r} is neither a server nor a database; expected something like "
            "http://host:5000 or sqlite:////path/mlflow.db."
        )
    if scheme == "sqlite" and not Path(uri.partition("sqlite:///")[2] or ".").parent.is_dir():
        raise UserError(f"{uri}: the folder of this database does not exist; make it first.")


def make_tables(uri: str) -> None:
    """Make a new sqlite store beside its place and rename it: MLflow takes seconds to make its tables and refuses for
    ever to go on with a store in which it was killed among them.
    """
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    partial = path.with_name(f".{path.name}.partial")
    with locked(path.with_name(f".{path.name}.lock"), f"{path}: another process is making this MLflow store"):
        if path.exists():  # another workflow made it meanwhile
            return
        for left in (partial, partial.with_name(f"{partial.name}-journal")):
            left.unlink(missing_ok=True)
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        os.replace(partial, path)


def open_experiment(client: "MlflowClient", name: str, artefacts: Path | None) -> str:
    """Id of the experiment, made if missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    while found is None:
        try:
            return str(client.create_experiment(name, artefacts.resolve().as_uri() if artefacts else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another job's live mirror was first
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name!r} was deleted; bring it back with `mlflow experiments restore --experiment-id "
            f"{found.experiment_id}`, or give the configuration another tracking.experiment."
        )
    return str(found.experiment_id)
