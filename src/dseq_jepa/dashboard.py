"""Look at the runs of a results folder in MLflow's pages.

    dseq-jepa dashboard --config configs/demo.yaml       # http://127.0.0.1:5000 until Ctrl-C

The server listens on 127.0.0.1 only: whoever reaches the port can read and delete everything. From another machine an
ssh tunnel is the way, and the line for it is printed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dseq_jepa.errors import UserError
from dseq_jepa.masking import masked
from dseq_jepa.stores import is_server, store_uri

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background workers for language models; nothing here uses them
}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def dashboard(results: Path, port: int = 5000, say: Callable[[str], None] = _say) -> None:
    """Serve the store of results/<config> on 127.0.0.1 until the process is interrupted.

    Args:
        results: results/<config>; its store is the same that `dseq-jepa sync` fills.
        port: of this machine.
        say: shows a line to the person.

    Raises:
        UserError: when there is no store yet, when it is behind a server of its own, when the port is taken, or when
            MLflow ends by itself.
    """
    uri = store_uri(results)
    if is_server(uri):
        raise UserError(f"MLFLOW_TRACKING_URI is a server; open {masked(uri)} in a browser.")
    database = Path(uri.partition("sqlite:///")[2])
    if uri.startswith("sqlite:") and not database.is_file():
        raise UserError(f"{database}: no MLflow store here yet; `dseq-jepa sync` (or the workflow) makes it.")
    _check_free(port)
    server = _start(uri, results, port)
    try:
        _stop_with_us()
        _wait_until_up(server, port)
        say(f"MLflow shows {masked(uri)} at http://{_HOST}:{port} until Ctrl-C.")
        say(f"From another machine: ssh -N -L {port}:{_HOST}:{port} {socket.gethostname()}")
        server.wait()
        raise UserError(f"the MLflow server ended by itself with exit status {server.returncode}.")
    except KeyboardInterrupt:
        say("The dashboard is closed; the store stays.")
    finally:
        _end(server)


def _start(uri: str, results: Path, port: int) -> "subprocess.Popen[bytes]":
    """MLflow's server in a session of its own, so that it and its workers can be ended together.

    The store's address goes through the environment: command lines are public on a shared machine.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    command += ["--default-artifact-root", (results.resolve() / "mlartifacts").as_uri(), "--no-serve-artifacts"]
    environment = {**_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UserError(f"port {port} of {_HOST} cannot be used ({error.strerror}); choose another.") from None


def _wait_until_up(server: "subprocess.Popen[bytes]", port: int) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(f"the MLflow server ended by itself with exit status {server.returncode}; see above.")
        try:
            with direct.open(f"http://{_HOST}:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UserError(f"the MLflow server did not answer within {_START_SECONDS:.0f} s.")


def _stop_with_us() -> None:
    """SIGTERM, or a closed terminal, ends the server too, as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
