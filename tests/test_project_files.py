"""The files about the project agree with each other and with the code."""

import re
import tomllib
from pathlib import Path

import yaml

import vanilla_transformer

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return set(phony[1].split())


def test_the_workflow_calls_make_targets_that_exist() -> None:
    commands = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    called = {re.fullmatch(r"make ([\w-]+)", command)[1] for command in commands}
    assert called <= make_targets()
    assert {"test", "coverage", "test-lowest", "demo", "dist", "lint-workflows"} <= called


def test_the_workflow_tests_every_python_that_the_project_names() -> None:
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == named == ["3.11", "3.12", "3.13", "3.14"]


def test_the_makefile_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^# make ([\w-]+) ", text, flags=re.MULTILINE)) == make_targets()


def test_changelog_and_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.search(r"^## \[([\d.]+)\]", changelog, flags=re.MULTILINE)[1] == vanilla_transformer.__version__
    assert citation["version"] == vanilla_transformer.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


def test_the_changelog_names_new_import_paths_that_exist() -> None:
    package = ROOT / "src" / "vanilla_transformer"
    rows = re.findall(r"^ *\| `.*\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    paths = {path for row in rows for path in re.findall(r"`([a-z0-9_]+\.[a-z0-9_]+|\w+_vanilla_transformer)`", row)}
    assert len(paths) > 25
    assert not [path for path in paths if not (package / f"{path.replace('.', '/')}.py").is_file()]
