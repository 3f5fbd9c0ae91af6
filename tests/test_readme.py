"""The commands and examples of README.md, docs/ and `make demo`, run as written, with training cut to a few steps."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers import write_fairseq_checkpoint
from programs import run_program

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.data.numbers import number_pairs

ROOT = Path(__file__).parents[1]
FEW_STEPS = "--max_steps 5 --eval_steps 5 --max_train_samples 200 --max_eval_samples 2 --max_length_ratio 99"

SMALL_BENCHMARKS = {
    "benchmarks/training.py": (
        "--presets tiny --vocab_size 300 --tokens 256 --batches 1 --rounds 1 --pipeline_steps 1 --parts steps pipelines"
    ),
    "benchmarks/decoding.py": "--presets tiny --vocab_size 300 --batch_sizes 2 --batches 1 --new_tokens 3 --rounds 1",
    "benchmarks/same_minutes.py": "--minutes 0.01 --trial_steps 1 --test_samples 2",
    "benchmarks/load_test.py": "--train_files data/multi30k/train --pairs 200",
    "benchmarks/kill_training.py": "--random_kills 0 --event_kills 1",
}
RUN_ELSEWHERE = "benchmarks/engines.py"  # minutes: the slow test of tests/convert/test_export.py runs it
# Each page uses what the pages before it made.
PAGES = (
    "README.md",
    "README.ko.md",
    "docs/command_line.md",
    "docs/training.md",
    "docs/decoding.md",
    "docs/sharing.md",
    "docs/benchmarks.md",
)


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those of none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def page_commands(page: str) -> list[str]:
    """Every command line of the package, lines that end in a backslash joined."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.search(r"vanilla-transformer |-m vanilla_transformer |scripts/", line)]


def demo_commands(*settings: str) -> list[str]:
    # VENV is named: under `make test VENV=...` a make inside would inherit that folder.
    listing = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "VENV=.venv", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
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
        french = number_pairs("en", "fr", split, len(pairs))["target"]
        (data / f"{name}.fr").write_text("".join(f"{sentence}\n" for sentence in french))
    korean = folder / "data" / "en-ko"
    korean.mkdir()
    for name, split in (("train", "train"), ("val", "validation")):
        pairs = number_pairs("en", "ko", split, 200 if split == "train" else 4)
        for lang, column in (("en", "source"), ("ko", "target")):
            (korean / f"{name}.{lang}").write_text(
                "".join(f"{sentence}\n" for sentence in pairs[column]), encoding="utf-8"
            )
    write_fairseq_checkpoint(folder)
    segmented = folder / "data" / "multi30k-bpe"
    segmented.mkdir()
    (segmented / "code").write_text("#version: 0.2\ne i\nei n</w>\n")
    for name, source in (("train", "train"), ("valid", "val"), ("test.2016", "test_2016_flickr")):
        for lang in ("en", "de"):
            (segmented / f"{name}.{lang}").write_text((data / f"{source}.{lang}").read_text())
    return folder


def with_options(command: str, options: str) -> str:
    """The command with these options in the place of its own."""
    for name in re.findall(r"--\w+", options):
        command = re.sub(rf"{name}(?: (?!--)\S+)*", "", command)
    return f"{command} {options}"


def run(command: str, folder: Path) -> str:
    """Run a command line of the form `[cat FILE |] COMMAND [> FILE]`; returns what it printed."""
    if "vanilla-transformer train " in command or "scripts/benchmarks/reproduce_multi30k.py" in command:
        # A checkpoint where there is a validation, unless several are to be averaged.
        is_averaged = "--load_best_model_at_end False" in command or "reproduce_multi30k" in command
        command += f" {FEW_STEPS} --save_steps {1 if is_averaged else 5}"
    for script, flags in SMALL_BENCHMARKS.items():
        if f"scripts/{script}" in command:
            command = with_options(command, flags)
    source, bar, rest = command.rpartition(" | ")
    words = shlex.split(rest, comments=True)
    words, output = (words[:-2], words[-1]) if words[-2] == ">" else (words, None)
    words = words[1:] if words[0] == "python" else ["-m", "vanilla_transformer", *words[1:]]
    finished = run_program(words, folder, stdin=folder / source.removeprefix("cat ") if bar else None)
    assert finished.status == 0, f"{command}\n{finished.err[-2000:]}"
    if output:
        (folder / output).write_text(finished.out, encoding="utf-8")
    return finished.out


@pytest.fixture(scope="module")
def run_page(folder):
    """Run the commands and then the Python examples of a page, and before that of the pages that it builds on."""
    done = []

    def run_once(page: str) -> None:
        for other in PAGES[: PAGES.index(page) + 1]:
            if other in done:
                continue
            done.append(other)
            for command in [command for command in page_commands(other) if RUN_ELSEWHERE not in command]:
                output = run(command, folder)
                assert output or ">" in command or "--output_file" in command, f"{command} printed nothing"
            for code in blocks(other, "python"):
                finished = run_program(["-c", code], folder)
                assert finished.status == 0, f"{other}\n{finished.err[-2000:]}"

    return run_once


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_examples_run_as_written(run_page, page):
    run_page(page)


def test_every_command_and_benchmark_is_shown():
    commands = " ".join(command for page in PAGES for command in page_commands(page))
    assert set(re.findall(r"vanilla-transformer (\w+)", commands)) == set(COMMANDS)
    benchmarks = {path.stem for path in (ROOT / "scripts" / "benchmarks").glob("*.py")} - {"common"}
    assert set(re.findall(r"scripts/benchmarks/(\w+)\.py", commands)) == benchmarks


@pytest.mark.parametrize(("page", "settings"), [("README.md", []), ("README.ko.md", ["TARGET_LANG=ko"])])
def test_make_demo_is_what_the_readme_gives_for_plain_pip(page, settings):
    train, evaluate, translate, plot, illustrate = (command.split() for command in demo_commands(*settings))
    readme = [command.split() for command in page_commands(page)]
    assert all(command in readme for command in (train, evaluate, plot, illustrate))
    assert translate[:4] in [command[:4] for command in readme]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1_500


def test_links_lead_to_files_and_headings_that_exist():
    broken = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                broken.append(f"{path.name}: {link}")
            elif target.suffix == ".py":
                lines = target.read_text(encoding="utf-8").count("\n")
                if not 1 <= int(anchor.removeprefix("L") or 1) <= lines:
                    broken.append(f"{path.name}: {link}")
            elif anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
                if anchor not in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}:
                    broken.append(f"{path.name}: {link}")
    assert not broken
