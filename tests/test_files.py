"""Artefacts are whole or not there."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.files import atomically, file_sha256, write_atomically


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", "grün")
    write_atomically(tmp_path / "a" / "c.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grün"
    assert (tmp_path / "a" / "c.bin").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(tmp_path / "a")) == ["b.txt", "c.bin"]


def test_an_error_in_the_block_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_atomically(target, "old")
    with pytest.raises(ZeroDivisionError), atomically(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        _ = 1 / 0
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dseq_jepa.files import atomically\n"
        "with atomically(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "x"
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -9
    assert not target.exists()
    write_atomically(target, "whole")
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path) -> None:
    """The kernel refuses bytes beyond a file size limit the way it refuses them on a full disk."""
    target = tmp_path / "x"
    write_atomically(target, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write_atomically(target, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_no_space_left_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"x: cannot be written: the disk is full; free some space"),
        atomically(tmp_path / "x"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
