"""The documentation holds what it says: links, cited sections, named tests, commands and the example of a variant."""

import re
from pathlib import Path

import pytest
import typer

from dseq_jepa.cli import app
from dseq_jepa.config import from_mapping, read_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    (?:torchrun .* -m )?dseq[-_]jepa (.*)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_cited_sections_exist():
    headings = set(re.findall(r"^#+ (\d(?:\.\d)?)\.? ", (ROOT / "docs" / "protocols.md").read_text(), re.MULTILINE))
    cited = {
        (path.name, section)
        for folder in ("src", "tests", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".yaml"} and path != Path(__file__)
        for numbers in re.findall(r"docs/protocols\.md ((?:\d(?:\.\d)?(?: and )?)+)", path.read_text())
        for section in numbers.split(" and ")
    }
    assert len(cited) > 20
    assert not {citation for citation in cited if citation[1] not in headings}


def test_the_named_tests_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 15
    assert named <= defined


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_verbs_with_options_that_they_have(page: Path):
    for line in COMMAND.findall(page.read_text().replace("\\\n", " ")):
        words = line.partition("#")[0].split()
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_come_before_configfile(page: Path):
    """Snakemake takes every word after --configfile as another file."""
    for file, rest in re.findall(r"^    .*snakemake .*--configfile (\S+)([^#\n]*)", page.read_text(), re.MULTILINE):
        assert file.endswith(".yaml")
        assert not rest.split()


def test_the_readmes_variant_is_a_configuration(tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(methods:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    entry, row = re.split(r"^#.*\n", block.removeprefix("methods:\n"), maxsplit=1, flags=re.MULTILINE)
    demo = (ROOT / "configs" / "demo.yaml").read_text()
    text = demo.replace("\nselection:\n", f"\n{entry}\nselection:\n", 1).replace("    rows:\n", f"    rows:\n{row}", 1)
    path = tmp_path / "my.yaml"
    path.write_text(text)
    experiment = from_mapping(read_yaml(path), str(path))
    assert experiment.methods["dseq-spatial"].order == "spatial"
    assert experiment.tables["table1"].rows[0].method == "dseq-spatial"
