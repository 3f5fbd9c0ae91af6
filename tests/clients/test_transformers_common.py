"""transformers' own tests of a model, ModelTesterMixin and GenerationTesterMixin, on our model and on MarianMT.

CLIENTS_TRANSFORMERS_SOURCE names the folder of transformers' sources. `make test-clients` sets it to the source
distribution from PyPI, whose tests/ has ModelTesterMixin but none of the folders below it, hence neither
GenerationTesterMixin (tests/generation) nor the tests of export (tests/exporters). A clone of the repository has all:

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
    make test-clients TRANSFORMERS_SOURCE=$PWD/transformers
"""

import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest

import vanilla_transformer

SOURCE = Path(os.environ.get("CLIENTS_TRANSFORMERS_SOURCE") or "without")
COMMON_TESTS = Path(__file__).with_name("transformers_common.py")
MARIAN = "MarianModelTest"
OURS = {"tied": "VanillaTransformerModelTest", "untied": "VanillaTransformerUntiedModelTest"}
# Tests that MarianMT, which is tied, passes and our untied model skips; transformers_common.py has the reasons.
LESS_THAN_MARIAN = {"tied": set(), "untied": {"test_inputs_embeds_matches_input_ids"}}

pytestmark = pytest.mark.skipif(
    not (SOURCE / "tests" / "test_modeling_common.py").is_file(),
    reason="needs transformers' sources, in a folder that CLIENTS_TRANSFORMERS_SOURCE names",
)


@dataclass
class Outcomes:
    """What came of one class of tests, by their names; a test with subtests has passed if one has and none failed."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


@cache
def run(test_class: str) -> Outcomes:
    """Run one class of transformers_common.py in a pytest of its own, without this project's settings and conftest.

    transformers' tests use marks of theirs, which ours would refuse, and a package with the name `tests`.
    """
    pytest.importorskip("parameterized", reason="needs parameterized, which transformers' tests import")
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        path = [str(SOURCE), str(Path(vanilla_transformer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        options = ["-c", os.devnull, "--rootdir", folder, "--noconftest", "-p", "no:cacheprovider", "-q", "--tb=short"]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", f"{COMMON_TESTS}::{test_class}"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert report.exists(), result.stdout[-3000:] + result.stderr[-3000:]
        entries: dict[str, list[ElementTree.Element]] = defaultdict(list)
        for entry in ElementTree.parse(report).iter("testcase"):
            entries[entry.get("name", "")].append(entry)
    outcomes = Outcomes()
    for name, of_name in entries.items():
        failures = [child for entry in of_name for child in entry if child.tag in ("failure", "error")]
        if failures:
            outcomes.failed[name] = failures[0].get("message", "")
        elif any(entry.find("skipped") is None for entry in of_name):
            outcomes.passed.add(name)
    assert outcomes.passed or outcomes.failed, result.stdout[-3000:]
    return outcomes


@pytest.mark.parametrize("kind", OURS)
def test_nothing_fails(kind):
    failed = run(OURS[kind]).failed
    assert not failed, "\n".join(f"{name}: {message}" for name, message in failed.items())


@pytest.mark.parametrize("kind", OURS)
def test_as_many_pass_as_of_marian_and_what_marian_passes_passes(kind):
    ours, marian = run(OURS[kind]), run(MARIAN)
    assert not marian.failed, f"the yardstick fails itself: {sorted(marian.failed)}"
    assert len(ours.passed) >= len(marian.passed)
    assert marian.passed - ours.passed == LESS_THAN_MARIAN[kind]


@pytest.mark.parametrize("kind", OURS)
def test_the_tests_of_generation_were_among_them(kind):
    if not (SOURCE / "tests" / "generation").is_dir():
        pytest.skip(f"{SOURCE} is a source distribution, which has no tests/generation; see above for a clone")
    assert {"test_greedy_generate", "test_beam_search_generate", "test_sample_generate"} <= run(OURS[kind]).passed
