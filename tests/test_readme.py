"""The README's commands and those of `make demo`, run as written, with training cut to a few steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_fairseq_checkpoint

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.data.numbers import number_pairs

ROOT = Path(__file__).parents[1]
FEW_STEPS = (
    "--max_steps 5 --eval_steps 1 --save_steps 1 --max_train_samples 200 --max_eval_samples 2 --max_length_ratio 99"
)

SMALL_BENCHMARKS = {
    "benchmarks/training.py": (
        "--presets tiny --vocab_size 300 --tokens 256 --batches 1 --rounds 1 --pipeline_steps 1 --parts steps pipelines"
    ),
    "benchmarks/decoding.py": "--presets tiny --vocab_size 300 --batch_sizes 2 --batches 1 --new_tokens 3 --rounds 1",
}
RUN_ELSEWHERE = "benchmarks/engines.py"  # minutes: the slow test of tests/convert/test_export.py runs it


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language; "" for those of none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def readme_commands() -> list[str]:
    """Every command line of the package, lines that end in a backslash joined."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if "vanilla-transformer " in line or "scripts/" in line]


def demo_commands() -> list[str]:
    listing = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = listing.stdout.replace("\\\n", " ").splitlines()
    return [line.removeprefix(".venv/bin/") for line in lines if "bin/vanilla-transformer " in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder like the repository's root, with numbers in the place of Multi30k."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    data = folder / "data" / "multi30k"
    data.mkdir(parents=True)
    for name, split in (
        ("train", "train"),
        ("val", "validation"),
        ("test_2016_flickr", "test"),
        ("test_2017_flickr", "test"),
    ):
        pairs = number_pairs("en", "de", split, 200 if split == "train" else 4)
        (data / f"{name}.en").write_text("".join(f"{sentence}\n" for sentence in pairs["source"]))
        (data / f"{name}.de").write_text("".join(f"{sentence}\n" for sentence in pairs["target"]))
    write_fairseq_checkpoint(folder)
    segmented = folder / "data" / "multi30k-bpe"
    segmented.mkdir()
    (segmented / "code").write_text("#version: 0.2\ne i\nei n</w>\n")
    for name, source in (("train", "train"), ("valid", "val"), ("test.2016", "test_2016_flickr")):
        for lang in ("en", "de"):
            (segmented / f"{name}.{lang}").write_text((data / f"{source}.{lang}").read_text())
    return folder


def run(command: str, folder: Path) -> str:
    if "vanilla-transformer train" in command or "scripts/benchmarks/reproduce_multi30k.py" in command:
        command += f" {FEW_STEPS}"
    for script, flags in SMALL_BENCHMARKS.items():
        if f"scripts/{script}" in command:
            command += f" {flags}"
    command = re.sub(r"\bpython\b", sys.executable, command, count=1)
    command = command.replace("vanilla-transformer ", f"{sys.executable} -m vanilla_transformer ", 1)
    finished = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, f"{command}\n{finished.stderr[-2000:]}"
    return finished.stdout


def test_commands_run_as_written(folder):
    """One test, since each command needs what the one before it made."""
    commands = readme_commands()
    shown = set(re.findall(r"vanilla-transformer (\w+)", " ".join(commands)))
    assert shown == set(COMMANDS), "the README shows every command"
    for command in [command for command in commands if RUN_ELSEWHERE not in command]:
        output = run(command, folder)
        assert output or ">" in command or "--output_file" in command, f"{command} printed nothing"
    for code in blocks("python"):
        finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-2000:]


def test_make_demo_is_what_the_readme_gives_for_plain_pip():
    train, evaluate, translate = (command.split() for command in demo_commands())
    readme = [command.split() for command in readme_commands()]
    assert train in readme and evaluate in readme
    assert translate[:4] in [command[:4] for command in readme]
