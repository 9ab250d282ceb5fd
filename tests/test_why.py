"""`dseq-jepa why` leads from a cell to the files behind it, notices replaced ones, and makes the number again."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.files import file_sha256
from dseq_jepa.why import explain, find_cell, script

TABLE = Path("results/micro/tables/table1.csv")
MODEL = "dseq-jepa/vit-micro/seed0"


@pytest.fixture
def copy(micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the measured results as the current folder."""
    shutil.copytree(micro, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def value_of(cell: str) -> float:
    return float(find_cell(TABLE, cell)["ours"])


def test_the_chain_names_every_file_with_its_hash_and_has_no_warning(copy: Path) -> None:
    said = explain(TABLE, "dseq-jepa:cub")
    results = Path("results/micro")
    selection = json.loads((results / "export" / MODEL / "selection.json").read_text())
    files = [
        results / "evaluate/small" / MODEL / "metrics.json",
        results / "fingerprints/cub.json",
        results / "export" / MODEL / "encoder.safetensors",
        results / "score" / MODEL / "scores.json",
        results / "pretrain" / MODEL / Path(selection["chosen"]["file"]).name,
        results / "pretrain" / MODEL / "run.json",
        results / "fingerprints/imagenet.json",
    ]
    lines = said.splitlines()
    places = [lines.index(f"    {file}") for file in files]
    assert places == sorted(places)
    assert [lines[place + 1] for place in places] == [f"    sha256 {file_sha256(file)}" for file in files]
    assert "!" not in said
    assert "fingerprints/clevr.json" not in said  # its evaluation is in the same job and not behind this number
    made = json.loads((results / "pretrain" / MODEL / "provenance.json").read_text())
    assert f"code {made['code_version']}, configuration {made['config_digest']}, seed 0" in said
    assert selection["reason"] in said


@pytest.mark.parametrize(
    ("file", "old", "new", "warning"),
    [
        (f"export/{MODEL}/encoder.safetensors", b"", b"\0", "the measurement's provenance says sha256"),
        (f"pretrain/{MODEL}/CHOSEN", b"", b"\0", "the encoder's card says sha256"),
        ("fingerprints/cub.json", b'"fingerprint": "', b'"fingerprint": "0', "no data set of the workflow has this"),
        (
            f"evaluate/small/{MODEL}/metrics.json",
            b'"value": ',
            b'"value": 9',
            "no evaluation in this file has the value",
        ),
    ],
)
def test_a_file_that_was_replaced_is_noticed(copy: Path, file: str, old: bytes, new: bytes, warning: str) -> None:
    results = copy / "results" / "micro"
    chosen = json.loads((results / "export" / MODEL / "selection.json").read_text())["chosen"]["file"]
    path = results / file.replace("CHOSEN", Path(chosen).name)
    content = path.read_bytes()
    path.unlink()  # checkpoints are hard links
    path.write_bytes(content.replace(old, new) if old else content + new)
    said = explain(TABLE, "dseq-jepa:cub")
    assert [line for line in said.splitlines() if line.startswith("    ! ") and warning in line]


def test_a_file_that_is_gone_is_said(copy: Path) -> None:
    (copy / "results/micro/pretrain" / MODEL / "run.json").unlink()
    assert "! this file is gone" in explain(TABLE, "dseq-jepa:cub")


def test_cells_are_found_by_the_names_that_people_use(copy: Path) -> None:
    wanted = find_cell(TABLE, "dseq-jepa:cub_linear_top1")
    for cell in ("DSeq-JEPA:CUB", "dseq-jepa:cub", "DSeq-JEPA/ViT-B/16:cub", "dseq-jepa/vit-micro/8:CUB"):
        assert find_cell(TABLE, cell) == wanted


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("cub", "expected ROW:COLUMN"),
        ("dseq-jep:cub", "no row 'dseq-jep'; did you mean \"dseq-jepa\""),
        ("dseq-jepa:cup", "no column 'cup'"),
        ("dseq-jepa:imagenet", "is not one cell but DSeq-JEPA/ViT-B/16:imagenet_linear_top1, DSeq"),
    ],
)
def test_a_wrong_cell_is_one_sentence(copy: Path, cell: str, sentence: str) -> None:
    if cell == "dseq-jepa:imagenet":  # only one of the two has a value of ours; give the other one too
        text = TABLE.read_text().splitlines()
        rows = list(csv.DictReader(text))
        for row in rows:
            row["ours"] = row["ours"] or "1.0"
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    with pytest.raises(UserError, match=sentence):
        find_cell(TABLE, cell)


def test_a_cell_without_a_value_of_ours_says_why(copy: Path) -> None:
    assert "the micro configuration does not fine-tune" in explain(TABLE, "dseq-jepa:fine-tune")
    with pytest.raises(UserError, match="no run of ours measured this value"):
        script(TABLE, "dseq-jepa:fine-tune")


def test_not_a_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of this project"):
        explain(tmp_path / "x.csv", "a:b")
    with pytest.raises(UserError, match="cannot be read: no such file"):
        explain(tmp_path / "none.csv", "a:b")


@pytest.mark.slow
def test_the_script_makes_the_same_number_again(copy: Path) -> None:
    """Every command really runs, in one process that has torch loaded already; the encoder is the same to the bit."""
    from tests.measured import verb

    lines = script(TABLE, "dseq-jepa:cub").replace('"$AGAIN"', "again").splitlines()
    verbs = [shlex.split(line)[1:] for line in lines if line.startswith("dseq-jepa ")]
    assert [words[0] for words in verbs] == ["pretrain", "score", "select", "export", "probe"]
    for words in verbs:
        verb(*words)
    for file in (f"export/{MODEL}/encoder.safetensors", f"evaluate/small/{MODEL}/records.csv.gz"):
        assert file_sha256(Path("again") / file) == file_sha256(Path("results/micro") / file)
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    shown = subprocess.run(["bash", "-c", lines[-1]], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.strip() == f"cub: was {value_of('dseq-jepa:cub'):g}, is {value_of('dseq-jepa:cub')}"
