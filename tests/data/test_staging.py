"""Copies on a node's own disk: the same pictures, made once, resumed, repaired, and gone when nobody needs them.

pytest tests/data/test_staging.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.data import staging
from dseq_jepa.data.catalog import check, load_split
from dseq_jepa.data.miniature import make_layout
from dseq_jepa.data.settings import DatasetSettings, Layout, LoadingSettings, MiniatureSettings, StageSettings
from dseq_jepa.data.staging import remove_unused, staged
from dseq_jepa.errors import UserError
from tests.training.runs import write_pictures

LAYOUTS: tuple[Layout, ...] = ("imagenet", "inat21", "cub", "cars", "clevr", "coco", "ade20k")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Every test is a process that has staged nothing yet."""
    yield from _forgotten()


def _forgotten() -> Iterator[None]:
    yield
    for _, descriptor in staging._held.values():
        os.close(descriptor)
    staging._held.clear()


def forget() -> None:
    """End the process, as far as its locks go."""
    list(_forgotten())


@pytest.fixture
def data(tmp_path: Path) -> DatasetSettings:
    root = write_pictures(tmp_path / "shared", count=12)
    shutil.copytree(root / "train", root / "val")
    found = check("imagenet", DatasetSettings(layout="imagenet", root=root))["fingerprint"]
    return DatasetSettings(layout="imagenet", root=root, fingerprint=found)


@pytest.fixture
def loading(tmp_path: Path) -> LoadingSettings:
    return LoadingSettings(workers=0, stage=StageSettings(folder=str(tmp_path / "scratch")))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in files(folder).items()}


def later(copy: Path) -> None:
    """Let the time pass after which a copy is looked at again."""
    os.utime(copy.with_suffix(".json"), (0, 0))


def process(data: DatasetSettings, loading: LoadingSettings, *, linger: float = 0) -> subprocess.Popen[str]:
    """Another process that stages, and then reads for a while."""
    code = (
        "import sys, time; from dseq_jepa.data.staging import staged; "
        "from dseq_jepa.data.settings import DatasetSettings as D, LoadingSettings as L; "
        "print(staged(D.model_validate_json(sys.argv[1]), L.model_validate_json(sys.argv[2])).root, flush=True); "
        "time.sleep(float(sys.argv[3]))"
    )
    words = [sys.executable, "-c", code, data.model_dump_json(), loading.model_dump_json(), str(linger)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_stage_the_root_is_read(data: DatasetSettings):
    assert staged(data, LoadingSettings(workers=0)) is data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_of_every_layout_has_the_same_fingerprint_and_labels(
    layout: Layout, tmp_path: Path, loading: LoadingSettings
):
    root = tmp_path / "shared"
    counts = dict.fromkeys(LAYOUTS, 20)
    recipe = MiniatureSettings(image_size=32, classes=2, train_images=counts, val_images=counts)
    make_layout(layout, root, recipe)
    settings = DatasetSettings(layout=layout, root=root)
    copy = staged(settings, loading)
    assert copy.root.parent == tmp_path / "scratch"
    shutil.move(root, tmp_path / "gone")  # whatever the copy lacks is missing now
    found, expected = (check("x", entry) for entry in (copy, settings.model_copy(update={"root": tmp_path / "gone"})))
    assert found["fingerprint"] == expected["fingerprint"]
    if layout not in ("coco", "ade20k"):
        target = "count" if layout == "clevr" else "class"
        ours, theirs = (
            load_split(copy, "train", target),
            load_split(settings.model_copy(update={"root": tmp_path / "gone"}), "train", target),
        )
        assert list(ours.paths) == list(theirs.paths)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_processes_of_a_node_copy_once(data: DatasetSettings, loading: LoadingSettings):
    started = [process(data, loading) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in started]
    assert {out for out, _ in said} == {f"{staged(data, loading).root}\n"}
    assert sorted("12/24" in err or "24/24" in err for _, err in said) == [False, False, True]
    assert contents(staged(data, loading).root) == contents(data.root)


def test_a_killed_copy_goes_on_where_it_stopped(data: DatasetSettings, loading: LoadingSettings, tmp_path: Path):
    """The source ends in a pipe that nobody writes to, so that the copy stops there and can be killed."""
    victim = next((data.root / "val").rglob("*.JPEG"))
    content = victim.read_bytes()
    victim.unlink()
    os.mkfifo(victim)
    unchecked = data.model_copy(update={"fingerprint": "0" * 64})
    began = process(unchecked, loading)
    scratch = tmp_path / "scratch"
    end = time.monotonic() + 60
    while len(list(scratch.rglob("*.JPEG"))) < 12:
        assert time.monotonic() < end
        time.sleep(0.05)
    began.send_signal(signal.SIGKILL)
    began.communicate()
    (half,) = scratch.glob("imagenet-*/")
    assert not half.with_suffix(".json").exists()
    victim.unlink()
    victim.write_bytes(content)
    before = files(half)
    half.rename(half.with_name(staging._key(data, data.fingerprint)))
    half.with_suffix(".copying").rename(scratch / f"{staging._key(data, data.fingerprint)}.copying")
    copy = staged(data, loading).root
    after = files(copy)
    assert {name: content for name, (_, content) in after.items()} == contents(data.root)
    kept = [name for name, (inode, _) in before.items() if name in after and after[name][0] == inode]
    assert len(kept) >= 12
    assert not list(copy.rglob("*.part"))


def test_what_was_copied_before_the_machine_crashed_is_copied_again(data: DatasetSettings, loading: LoadingSettings):
    copy = staged(data, loading).root
    forget()
    hollow = next(copy.rglob("*.JPEG"))
    hollow.write_bytes(bytes(hollow.stat().st_size))  # the right size, but its content never reached the disk
    copy.with_suffix(".json").unlink()
    copy.with_suffix(".copying").write_text("another boot\n")
    assert contents(staged(data, loading).root) == contents(data.root)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_copy_that_a_cleaner_damaged_is_repaired(damage: str, data: DatasetSettings, loading: LoadingSettings):
    copy = staged(data, loading).root
    forget()
    victim = next(copy.rglob("*.JPEG"))
    if damage == "missing":
        victim.unlink()
    else:
        os.truncate(victim, 10)
    later(copy)
    assert contents(staged(data, loading).root) == contents(data.root)


def test_changed_data_get_a_copy_of_their_own_and_the_old_one_ages(data: DatasetSettings, loading: LoadingSettings):
    old = staged(data, loading).root
    forget()
    picture = next((data.root / "train").rglob("*.JPEG"))
    picture.write_bytes(picture.read_bytes() + b"x")
    changed = data.model_copy(
        update={"fingerprint": check("x", data.model_copy(update={"fingerprint": None}))["fingerprint"]}
    )
    os.utime(old.with_suffix(".used"), (0, 0))
    new = staged(changed, loading).root
    assert new != old
    assert contents(new) == contents(data.root)
    assert not old.exists()


def test_data_that_are_not_those_of_the_job_are_refused_and_not_kept(data: DatasetSettings, loading: LoadingSettings):
    with pytest.raises(UserError, match=r"its copy on .* has fingerprint .*, the job expects 0000"):
        staged(data.model_copy(update={"fingerprint": "0" * 64}), loading)
    assert loading.stage is not None
    assert not list(Path(loading.stage.folder).rglob("*.JPEG"))


def test_a_copy_that_a_process_reads_is_not_removed(data: DatasetSettings, loading: LoadingSettings):
    assert loading.stage is not None
    reader = process(data, loading, linger=60)
    copy = Path(reader.stdout.readline().strip())
    try:
        assert remove_unused(loading.stage) == []
        assert copy.exists()
    finally:
        reader.kill()
        reader.communicate()
    assert remove_unused(loading.stage) == [copy]
    assert not copy.exists()


def test_room_is_made_by_removing_what_was_not_used_for_longest(
    data: DatasetSettings, loading: LoadingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk is as large as one and a half copies."""
    old = staged(data, loading).root
    forget()
    room = sum(len(content) for content in contents(data.root).values()) * 3 // 2

    def usage(folder: Path) -> shutil._ntuple_diskusage:
        used = sum(len(content) for name, content in contents(folder).items() if name.endswith(".JPEG"))
        return shutil._ntuple_diskusage(room, used, room - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    moved = data.model_copy(update={"root": data.root.rename(tmp_path / "elsewhere")})
    new = staged(moved, loading).root
    assert new.exists()
    assert not old.exists()
    forget()
    bigger = moved.model_copy(update={"root": moved.root.rename(tmp_path / "bigger")})
    room //= 2
    with pytest.raises(
        UserError, match=r"loading\.stage\.folder: .* has .* GB free, and the copy of .*bigger needs .* GB\. Free some"
    ):
        staged(bigger, loading)


def test_a_full_disk_is_one_sentence_and_the_copy_goes_on(data: DatasetSettings, tmp_path: Path):
    """A real small file system, which fills while the copy is made: the room was there when it was looked for."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    total = sum(len(content) for content in contents(data.root).values())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * total + (64 << 10)}", "tmpfs", str(scratch)], check=True)
    try:
        loading = LoadingSettings(workers=0, stage=StageSettings(folder=str(scratch)))
        real = staging._make_room

        def meanwhile(*arguments: object) -> None:
            real(*arguments)  # type: ignore[arg-type]
            (scratch / "others").write_bytes(bytes(shutil.disk_usage(scratch).free - total // 2))

        staging._make_room = meanwhile
        try:
            with pytest.raises(UserError, match="cannot be written: the disk is full; free some space"):
                staged(data, loading)
        finally:
            staging._make_room = real
        forget()
        (scratch / "others").unlink()
        assert contents(staged(data, loading).root) == contents(data.root)
        forget()
    finally:
        subprocess.run(["umount", "--lazy", str(scratch)], check=True)


def test_a_variable_of_the_node_names_the_folder(
    data: DatasetSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loading = LoadingSettings(workers=0, stage=StageSettings(folder="$NODE_SCRATCH/dseq-jepa"))
    with pytest.raises(UserError, match=r"loading\.stage\.folder: \$NODE_SCRATCH.* is not set on "):
        staged(data, loading)
    monkeypatch.setenv("NODE_SCRATCH", str(tmp_path / "node"))
    assert staged(data, loading).root.parent == tmp_path / "node" / "dseq-jepa"


def test_a_folder_that_cannot_be_written_is_one_sentence(data: DatasetSettings, tmp_path: Path):
    (tmp_path / "file").write_text("")
    loading = LoadingSettings(workers=0, stage=StageSettings(folder=str(tmp_path / "file")))
    with pytest.raises(UserError, match="file: cannot be written"):
        staged(data, loading)


def test_the_mark_says_what_was_copied(data: DatasetSettings, loading: LoadingSettings):
    about = json.loads(staged(data, loading).root.with_suffix(".json").read_text())
    assert about["root"] == str(data.root)
    assert about["fingerprint"] == data.fingerprint
