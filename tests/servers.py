"""A real MLflow server that tests kill, freeze, starve of disk and start again, and a slow road to it."""

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def points_in(database: Path) -> int:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("select count(*) from metrics").fetchone()[0])
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def spawn_sync(results: Path, experiment: str = "demo", uri: str = "") -> "subprocess.Popen[bytes]":
    code = "import sys; from pathlib import Path; from dseq_jepa.tracking import sync\n"
    code += "sync(Path(sys.argv[1]), sys.argv[2])"
    environment = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    return subprocess.Popen(
        [sys.executable, "-c", code, str(results), experiment], env=environment, stderr=subprocess.PIPE
    )


class Server:
    """A real MLflow server on a sqlite store."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.database, self.port = folder / "server.db", free_port()
        shutil.copy(empty_store, self.database)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.before = 0
        self.start()

    def start(self, room: int | None = None) -> None:
        """Start, or start again; with `room` no file may grow by more bytes, as on a full disk."""
        size = self.database.stat().st_size + (room or 0)
        limit = None if room is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.database.parent / "artefacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=limit,
        )
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def new_points(self) -> int:
        return points_in(self.database) - self.before

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()


class SlowRoad:
    """A port whose every request reaches the server 5 s late."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port, self.uri = port, f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._carry, args=(client, server, 5.0), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, 0.0), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, seconds: float) -> None:
        try:
            while data := source.recv(1 << 16):
                self.calls += bool(seconds)
                time.sleep(seconds)
                target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()

    def close(self) -> None:
        self._listener.close()
