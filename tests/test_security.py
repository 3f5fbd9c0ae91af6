"""SECURITY.md names files that exist, and no other place of the package runs code or unpickles."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What runs code or unpickles, and the only files that may have it.
DANGEROUS = {
    r"torch\.load\(": set(),
    r"\bpickle\.(loads?|Unpickler)\b": {"convert/torch_file.py"},
    r"(?<![.\w])(eval|exec)\(": set(),
    r"trust_remote_code=True": {"hub/child_process.py"},
    r"\bsubprocess\.(run|Popen|call|check_\w+)\(": {"hub/verify.py", "inference/comet.py"},
    r"os\.(system|popen)\(|shell=True|yaml\.(unsafe_)?load\(|marshal|dill|joblib": set(),
}


@pytest.mark.parametrize("pattern", DANGEROUS)
def test_code_runs_in_no_other_place(pattern):
    package = ROOT / "src" / "vanilla_transformer"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(re.search(pattern, line) for line in path.read_text().splitlines() if "`" not in line)
    }
    assert found == DANGEROUS[pattern]


def test_the_files_that_security_md_names_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)`", text) + [
        f"src/vanilla_transformer/{path}" for path in re.findall(r"`(convert/\w+\.py)`", text)
    ]
    assert len(named) > 5
    for path in named:
        assert (ROOT / path).is_file(), path


def test_the_limits_that_security_md_names_are_those_of_the_code():
    from vanilla_transformer.convert.torch_file import MAX_OPERATIONS, MAX_PICKLE_BYTES
    from vanilla_transformer.data.text_files import MAX_LINE_BYTES
    from vanilla_transformer.hub.provenance import MAX_TEXT
    from vanilla_transformer.inference.model_files import MAX_JSON_BYTES

    limits = (MAX_PICKLE_BYTES >> 20, MAX_OPERATIONS, MAX_LINE_BYTES >> 20, MAX_TEXT, MAX_JSON_BYTES)
    assert limits == (64, 2_000_000, 16, 20_000, 10_000_000)
