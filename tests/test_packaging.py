"""The wheel installs into an empty environment and works there; what it declares is what the code needs."""

import ast
import email
import email.message
import importlib.metadata
import itertools
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

USE_THE_PACKAGE = """
import pathlib, sys
import torch
import vanilla_transformer
from transformers import AutoModelForSeq2SeqLM

home = pathlib.Path(vanilla_transformer.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
config = vanilla_transformer.VanillaTransformerConfig.preset("tiny", vocab_size=50)
model = vanilla_transformer.VanillaTransformerForConditionalGeneration(config).eval()
model.save_pretrained("model")
loaded = AutoModelForSeq2SeqLM.from_pretrained("model").eval()
assert type(loaded) is type(model), type(loaded)
ids = torch.tensor([[5, 6, 2]])
with torch.no_grad():
    expected, got = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, loaded))
assert torch.equal(expected, got)
print("works")
"""
FEW_STEPS = (
    "--output_dir run --preset tiny --config_overrides encoder_layers=1,decoder_layers=1 --vocab_size 300 "
    "--per_device_train_tokens 256 --max_steps 2 --max_train_samples 100 --max_eval_samples 2"
).split()


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repo with the build backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def core_requirements(metadata: email.message.Message) -> dict[str, Requirement]:
    """What a plain install asks for, without extras, by normalized name."""
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return {canonicalize_name(r.name): r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel and, of everything else, what this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    purelib = run(python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # The dependencies come from this environment. Its .pth files are not read through a path line,
    # so an editable install of this package stays out of sight.
    Path(purelib, "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return folder / "bin"


def test_wheel_works_in_an_empty_environment(installed: Path, tmp_path: Path) -> None:
    assert "works" in run(installed / "python", "-Ic", USE_THE_PACKAGE, cwd=tmp_path)


def test_wheel_brings_a_command_that_trains_translates_and_evaluates(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the checkout stays out of sight
    command = installed / "vanilla-transformer"
    assert PROJECT["name"] in run(command, "--version", cwd=tmp_path)
    assert "The model is in run" in run(command, "train", *FEW_STEPS, cwd=tmp_path)
    model = ("--model_name_or_path", "run")
    assert len(run(command, "translate", *model, "one", "two", cwd=tmp_path).splitlines()) == 2
    assert "sacreBLEU" in run(command, "evaluate", *model, "--max_predict_samples", "2", cwd=tmp_path)


def test_wheel_holds_the_package_and_the_license_only(wheel: Path, metadata: email.message.Message) -> None:
    package = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/vanilla_transformer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"vanilla_transformer-{metadata['Version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert names == package | {
        f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_metadata_states_license_and_python(metadata: email.message.Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_every_import_is_declared(metadata: email.message.Message) -> None:
    """What an extra brings is imported through `errors.require`, or in the extra's own module, or for types only."""
    declared = core_requirements(metadata)
    distributions = importlib.metadata.packages_distributions()
    undeclared = []
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        for_types = {id(node) for block in guarded for node in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules}:
                sibling = path.with_name(f"{module}.py").is_file()  # scripts/benchmarks/common.py
                if module in sys.stdlib_module_names or module == "vanilla_transformer" or sibling:
                    continue
                if not declared.keys() & {canonicalize_name(name) for name in distributions.get(module, [])}:
                    undeclared.append(f"{path.relative_to(ROOT)}:{node.lineno}: {module}")
    assert not undeclared


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert str(pins[0]) == "torch==2.13.0"
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        versions[canonicalize_name(pin.name)] = specifier.version
    for line in itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras < PROJECT["optional-dependencies"].keys()  # `dev` has all others
            continue
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement
        # Without a lower bound `make test-lowest` would install some ancient release.
        assert any(specifier.operator == ">=" for specifier in requirement.specifier), requirement
