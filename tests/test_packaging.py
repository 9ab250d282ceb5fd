"""The places that state what the project needs agree: pyproject.toml, requirements.lock and environment.yml.

pytest tests/test_packaging.py
"""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(t for extra in PROJECT["optional-dependencies"].values() for t in extra))
]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]


def locked(name: str, python: str) -> list[Version]:
    """Versions that the lock file gives on Linux for a Python version."""
    environment = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    found = (pin for pin in LOCK if pin.name.lower() == name.lower())
    return [
        Version(next(iter(pin.specifier)).version)
        for pin in found
        if pin.marker is None or pin.marker.evaluate({key: str(value) for key, value in environment.items()})
    ]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_the_lock_pins_what_pyproject_declares(requirement: Requirement, python: str):
    versions = locked(requirement.name, python)
    assert len(versions) == 1, f"requirements.lock has {versions} of {requirement.name}; run: make lock"
    assert versions[0] in requirement.specifier, f"{versions[0]} is not {requirement}; run: make lock"


def test_the_lock_pins_exactly_and_names_no_place():
    for pin in LOCK:
        assert pin.url is None
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin


@pytest.mark.parametrize(("file", "root"), [("environment.yml", ""), ("workflow/envs/dseq-jepa.yml", "../../")])
def test_conda_environments_are_python_and_the_lock(file: str, root: str):
    environment = yaml.safe_load((ROOT / file).read_text())
    (python,) = (entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert Version(python.removeprefix("python=")) in SpecifierSet(PROJECT["requires-python"])
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == [f"-r {root}requirements.lock", f"-e {root.rstrip('/') or '.'}"]


def test_citation_and_package_name_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert len(citation["references"][0]["authors"]) == 8
