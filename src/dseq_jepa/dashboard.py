"""Look at the runs of a results folder in MLflow's pages.

    dseq-jepa dashboard --config configs/demo.yaml       # http://127.0.0.1:5000 until Ctrl-C
    DSEQ_DASHBOARD_PASSWORD=... dseq-jepa dashboard --config configs/demo.yaml --host 0.0.0.0
    dseq-jepa dashboard --config configs/demo.yaml --host 0.0.0.0 --password-file ~/.dseq-dashboard

The server listens on 127.0.0.1 only: whoever reaches the port can read and delete everything. From another machine an
ssh tunnel is the way, and the line for it is printed. With --host it listens where it is told, and only with a password
(user `dseq`), from the environment or from a file that nobody else can read: never from the command line, which every
user of the machine sees.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
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
_LOOPBACK = (_HOST, "localhost")
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - recognised, and nobody's default
USER, PASSWORD = "dseq", "DSEQ_DASHBOARD_PASSWORD"
_SHORTEST_PASSWORD = 12
_START_SECONDS = 120.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background workers for language models; nothing here uses them
}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def dashboard(
    results: Path,
    port: int = 5000,
    say: Callable[[str], None] = _say,
    host: str = _HOST,
    password_file: Path | None = None,
) -> None:
    """Serve the store of results/<config> until the process is interrupted.

    Args:
        results: results/<config>; its store is the same that `dseq-jepa sync` fills.
        port: of this machine.
        say: shows a line to the person.
        host: address to listen on; any but this machine's own needs a password.
        password_file: holds the password; the environment's DSEQ_DASHBOARD_PASSWORD unless given.

    Raises:
        UserError: when there is no store yet, when it is behind a server of its own, when the port is taken, when a
            password is needed and missing, short or readable by others, or when MLflow ends by itself.
    """
    uri = store_uri(results)
    if is_server(uri):
        raise UserError(f"MLFLOW_TRACKING_URI is a server; open {masked(uri)} in a browser.")
    database = Path(uri.partition("sqlite:///")[2])
    if uri.startswith("sqlite:") and not database.is_file():
        raise UserError(f"{database}: no MLflow store here yet; `dseq-jepa sync` (or the workflow) makes it.")
    password = None if host in _LOOPBACK and password_file is None else _password(password_file)
    _check_free(host, port)
    with tempfile.TemporaryDirectory(prefix="dseq-dashboard-") as private:
        server = _start(uri, results, (host, port), password, Path(private))
        try:
            _stop_with_us()
            _wait_until_up(server, host, port)
            say(f"MLflow shows {masked(uri)} at http://{host}:{port} until Ctrl-C.")
            if password is None:
                say(f"From another machine: ssh -N -L {port}:{host}:{port} {socket.gethostname()}")
            else:
                say(f"User {USER}, and your password. It travels unencrypted: use this in a network that you trust.")
            server.wait()
            raise UserError(f"the MLflow server ended by itself with exit status {server.returncode}.")
        except KeyboardInterrupt:
            say("The dashboard is closed; the store stays.")
        finally:
            _end(server)


def _password(file: Path | None) -> str:
    """The password from a file that only its owner can read, or from the environment."""
    if file is None:
        where, password = PASSWORD, os.environ.get(PASSWORD, "")
        if not password:
            raise UserError(
                f"--host opens the dashboard to others, who could delete every run; set {PASSWORD}, or give "
                "--password-file FILE with mode 600. Without --host it stays on this machine."
            )
    else:
        where = str(file)
        try:
            mode, password = file.stat().st_mode, file.read_text().strip()
        except OSError as error:
            raise UserError(f"{file}: the password cannot be read: {(error.strerror or '').lower()}.") from None
        if mode & 0o077:
            raise UserError(f"{file}: others can read this password; run `chmod 600 {file}` and choose a new one.")
    if len(password) < _SHORTEST_PASSWORD:
        raise UserError(f"{where}: the password has fewer than {_SHORTEST_PASSWORD} characters; choose a longer one.")
    return password


def _start(
    uri: str, results: Path, place: tuple[str, int], password: str | None, private: Path
) -> "subprocess.Popen[bytes]":
    """MLflow's server in a session of its own, so that it and its workers can be ended together.

    The store's address and the password go through the environment: command lines are public on a shared machine.
    """
    host, port = place
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--default-artifact-root", (results.resolve() / "mlartifacts").as_uri(), "--no-serve-artifacts"]
    environment = {**_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    if password is not None:
        command += ["--app-name", "basic-auth", "--allowed-hosts", ",".join(_names(host, port))]
        environment |= _authentication(password, private)
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)


def _authentication(password: str, private: Path) -> dict[str, str]:
    """One user; the list of users lives as long as the server, so the password is always the one that was given."""
    settings = private / "auth.ini"
    users = f"sqlite:///{private / 'users.db'}"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {users}\nadmin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _names(host: str, port: int) -> list[str]:
    """What browsers may call this server; another name in a request is an attack through a foreign page."""
    names = dict.fromkeys((host, _HOST, "localhost", socket.gethostname(), socket.getfqdn(), *_addresses()))
    return [f"{name}{suffix}" for name in names for suffix in ("", f":{port}")]


def _addresses() -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        return []


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be used ({error.strerror}); choose another.") from None


def _wait_until_up(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(f"the MLflow server ended by itself with exit status {server.returncode}; see above.")
        try:
            with direct.open(f"http://{_HOST if host == _EVERYWHERE else host}:{port}/health", timeout=2):
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
