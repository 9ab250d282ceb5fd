"""The dashboard shows the store on this machine only, and leaves no process behind."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from dseq_jepa.dashboard import dashboard
from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal
from dseq_jepa.tracking import sync


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_a_store_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mlflow\.db: no MLflow store here yet; `dseq-jepa sync`"):
        dashboard(tmp_path)


def test_a_server_is_opened_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    with pytest.raises(UserError, match=r"open https://\*\*\*@host in a browser"):
        dashboard(tmp_path)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be used.*choose another"):  # noqa: RUF043
            dashboard(tmp_path, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("password", "mode", "sentence"),
    [
        (None, 0, r"could delete every run; set DSEQ_DASHBOARD_PASSWORD, or give --password-file"),
        ("short", 0, "DSEQ_DASHBOARD_PASSWORD: the password has fewer than 12 characters"),
        ("long enough to be one", 0o640, "others can read this password; run `chmod 600"),
        ("long enough to be one", 0o604, "others can read this password; run `chmod 600"),
        ("long enough to be one", 0o620, "others can read this password; run `chmod 600"),
        ("long enough to be one", 0o644, "others can read this password; run `chmod 600"),
        ("short", 0o600, "secret: the password has fewer than 12 characters"),
    ],
)
@pytest.mark.timeout(60)  # a mistake here would serve until somebody stops it
def test_the_network_is_never_served_without_a_good_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None, mode: int, sentence: str
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.delenv("DSEQ_DASHBOARD_PASSWORD", raising=False)
    file = None
    if mode:
        file = tmp_path / "secret"
        file.write_text(str(password))
        file.chmod(mode)
    elif password:
        monkeypatch.setenv("DSEQ_DASHBOARD_PASSWORD", password)
    with pytest.raises(UserError, match=sentence):
        dashboard(tmp_path, free_port(), host="0.0.0.0", password_file=file)


def answer(url: str, login: str | None = None, host: str | None = None, body: bytes | None = None) -> int:
    """HTTP status of a request, without following a redirect to a login page."""
    request = urllib.request.Request(url, body)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    if host:
        request.add_header("Host", host)
    if body:
        request.add_header("Content-Type", "application/json")
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return int(direct.open(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_nobody_gets_in_from_the_network_without_the_password(tmp_path: Path) -> None:
    """Asks for pages, runs, artefacts and deletion: without, with a wrong and a default password, as a foreign page."""
    with Journal(tmp_path / "pretrain" / "m" / "a" / "seed0" / "journal.jsonl") as journal:
        journal.start({"step": "pretrain", "method": "m", "architecture": "a", "seed": "0"})
    sync(tmp_path, "demo")
    port, password = free_port(), "correct horse battery"
    code = "import sys; from pathlib import Path; from dseq_jepa.dashboard import dashboard\n"
    code += "dashboard(Path(sys.argv[1]), int(sys.argv[2]), host='0.0.0.0')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"DSEQ_DASHBOARD_PASSWORD": password},
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    try:
        base = f"http://127.0.0.1:{port}"
        paths = ["/", "/api/2.0/mlflow/experiments/get?experiment_id=1", "/ajax-api/2.0/mlflow/experiments/get"
                 "?experiment_id=1", "/get-artifact?path=config.json&run_uuid=x", "/graphql"]  # fmt: skip
        for path in paths:
            for login in (None, "dseq:wrong password", "admin:password1234", "dseq:", f"admin:{password}"):
                assert answer(base + path, login) == 401, (path, login)
        delete = base + "/api/2.0/mlflow/experiments/delete"
        assert answer(delete, body=b'{"experiment_id": "1"}') == 401
        assert answer(base + paths[0], f"dseq:{password}") == 200
        assert answer(base + paths[1], f"dseq:{password}", host="evil.example") == 403
        assert answer(base + paths[1], f"dseq:{password}") == 200
        with pytest.raises(UserError, match=r"refuses: .*Set MLFLOW_TRACKING_USERNAME") as refused:
            sync(tmp_path, "demo", uri=f"http://dseq:wrong-password@127.0.0.1:{port}")
        assert "wrong-password" not in str(refused.value)
        assert sync(tmp_path, "other", uri=f"http://dseq:{password.replace(' ', '%20')}@127.0.0.1:{port}").new_runs == 1
        tree = psutil.Process(process.pid)
        assert not [c for c in [tree, *tree.children(recursive=True)] if password in " ".join(c.cmdline())]
    finally:
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    assert password not in said + rest + errors
    assert "User dseq" in said


@pytest.mark.slow
def test_it_serves_the_runs_on_this_machine_only_and_ends_cleanly(tmp_path: Path) -> None:
    with Journal(tmp_path / "pretrain" / "m" / "a" / "seed0" / "journal.jsonl") as journal:
        journal.start({"step": "pretrain", "method": "m", "architecture": "a", "seed": "0"})
    sync(tmp_path, "demo")
    port = free_port()
    code = "import sys; from pathlib import Path; from dseq_jepa.dashboard import dashboard\n"
    code += "dashboard(Path(sys.argv[1]), int(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(port)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in said
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in said
    children = psutil.Process(process.pid).children(recursive=True)
    listening = {c.laddr for child in children for c in child.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", port)}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert "<title>MLflow" in direct.open(f"http://127.0.0.1:{port}/").read().decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=demo"
    )
    assert b'"name": "demo"' in direct.open(request).read()
    process.send_signal(signal.SIGTERM)
    assert "closed" in process.communicate(timeout=20)[0]
    until = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < until
        time.sleep(0.1)
