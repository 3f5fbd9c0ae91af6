"""Imports run downwards only, and the files that travel to the Hub need nothing that stays at home."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vanilla_transformer"
TRAVELLING = sorted(PACKAGE.glob("*_vanilla_transformer.py"))
TRAVELLING_MAY_IMPORT = sys.stdlib_module_names | {"torch", "transformers", "huggingface_hub"}


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml on the package in the folder `source`."""
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copied_source(tmp_path: Path) -> Path:
    """A folder with a copy of the package, to be changed."""
    shutil.copytree(PACKAGE, tmp_path / "vanilla_transformer", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_run_downwards() -> None:
    finished = lint_imports(PACKAGE.parent)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 kept, 0 broken" in finished.stdout


@pytest.mark.parametrize(
    ("importing", "imported"),
    [
        ("data/files.py", "training.record"),
        ("training/record.py", "plots.run"),
        ("errors.py", "data.files"),
        ("configuration_vanilla_transformer.py", "modeling_vanilla_transformer"),
        ("modeling_vanilla_transformer.py", "errors"),
    ],
)
def test_an_import_against_the_order_is_found(copied_source: Path, importing: str, imported: str) -> None:
    path = copied_source / "vanilla_transformer" / importing
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\nimport vanilla_transformer.{imported}\n")
    finished = lint_imports(copied_source)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    module = "vanilla_transformer." + importing.removesuffix(".py").replace("/", ".")
    assert f"{module} -> vanilla_transformer.{imported}" in finished.stdout


def test_a_module_without_a_place_in_the_order_is_found(copied_source: Path) -> None:
    (copied_source / "vanilla_transformer" / "utilities.py").touch()
    finished = lint_imports(copied_source)
    assert finished.returncode == 1
    assert "utilities" in finished.stdout


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.stem)
def test_files_that_travel_import_only_what_is_there_at_the_other_end(path: Path) -> None:
    foreign = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            foreign += [f"line {node.lineno}: {name}" for name in names if name not in TRAVELLING_MAY_IMPORT]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (node.module or "").partition(".")[0] not in TRAVELLING_MAY_IMPORT:
                foreign.append(f"line {node.lineno}: {node.module}")
        elif isinstance(node, ast.ImportFrom):
            siblings = {sibling.stem for sibling in TRAVELLING}
            modules = {node.module} if node.module else {alias.name for alias in node.names}
            foreign += [f"line {node.lineno}: .{module}" for module in modules - siblings]
            if node.level > 1:
                foreign.append(f"line {node.lineno}: an import from above the package")
    assert not foreign


def test_the_order_names_every_file_that_travels() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    named = {name.removeprefix("vanilla_transformer.") for name in settings["contracts"][1]["source_modules"]}
    assert named == {path.stem for path in TRAVELLING}
