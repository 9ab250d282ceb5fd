"""The command that is run at the end of a workflow gets the news, and its own failure stops nothing.

pytest tests/cluster/test_notify.py
"""

from pathlib import Path

import pytest

from dseq_jepa.cluster import notify as module
from dseq_jepa.cluster.notify import VARIABLE, notify


def test_the_command_gets_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f'echo "$DSEQ_EVENT" >> {tmp_path}/news')
    notify("paper failed")
    notify('paper\'s "$HOME" finished')
    assert (tmp_path / "news").read_text() == 'paper failed\npaper\'s "$HOME" finished\n'


def test_failures_of_the_command_are_told_and_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    for command, expected in (("exit 3", "ended with status 3"), ("sleep 5", "did not end within")):
        monkeypatch.setenv(VARIABLE, command)
        notify("paper failed")
        assert expected in capsys.readouterr().err
    monkeypatch.delenv(VARIABLE)
    notify("nobody listens")
    assert capsys.readouterr().err == ""
