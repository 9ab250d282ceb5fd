"""A real MLflow server on a sqlite store of its own, and a road to it that is slow or gone.

    server = Server(folder)
    server.wait()
    road = Road(server.port, seconds=5)     # road.uri: every request reaches the server 5 s late
    road.end()                              # now nobody listens there
    server.end()

Both are processes of their own, so that what they do is not counted as work of the training that is measured.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

_START_SECONDS = 90.0


class Server:
    """`mlflow server`; `wait` until it answers, `end` in every case."""

    def __init__(self, folder: Path) -> None:
        self.port, self._database = _free_port(), folder / "server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._database}"]
        command += ["--artifacts-destination", str(folder / "artefacts")]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Return when it answers."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                with direct.open(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def points(self, experiment: str) -> int:
        """How many points the store holds of an experiment; read from its file, so that a frozen server tells too."""
        query = (
            "select count(*) from metrics join runs using (run_uuid) join experiments using (experiment_id) "
            "where experiments.name = ?"
        )
        return self._ask(query, experiment)

    def knows(self, experiment: str) -> bool:
        """Whether the experiment was made, with or without points yet."""
        return bool(self._ask("select count(*) from experiments where name = ?", experiment))

    def _ask(self, query: str, experiment: str) -> int:
        connection = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=30)
        try:
            return int(connection.execute(query, [experiment]).fetchone()[0])
        finally:
            connection.close()

    def freeze(self) -> None:
        """Stop all its processes; the kernel still takes connections."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """End all its processes, frozen or not."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


_CARRY = """
import asyncio, sys

port, target, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

async def carry(reader, writer, delay):
    while data := await reader.read(1 << 16):
        await asyncio.sleep(delay)
        writer.write(data)
    writer.close()

async def accept(reader, writer):
    upstream = await asyncio.open_connection("127.0.0.1", target)
    await asyncio.gather(carry(reader, upstream[1], seconds), carry(upstream[0], writer, 0), return_exceptions=True)

async def main():
    async with await asyncio.start_server(accept, "127.0.0.1", port) as listener:
        await listener.serve_forever()

asyncio.run(main())
"""


class Road:
    """A port whose every request reaches the server so many seconds late."""

    def __init__(self, target: int, seconds: float) -> None:
        port = _free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen([sys.executable, "-c", _CARRY, str(port), str(target), str(seconds)])

    def end(self) -> None:
        """Take it away; whoever is on it is disconnected."""
        self._process.kill()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
