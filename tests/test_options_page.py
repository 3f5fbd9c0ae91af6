"""docs/options.md is what `make docs` writes."""

import runpy
from pathlib import Path

import pytest
import transformers

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.commands.train import make_parser
from vanilla_transformer.training import options

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = "transformers==" + transformers.__version__ in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def page() -> str:
    return runpy.run_path(str(ROOT / "scripts" / "document_options.py"))["make_page"]()


@pytest.mark.skipif(not DOCUMENTED, reason="other releases of transformers have other options and other words for them")
def test_the_page_is_up_to_date(page: str) -> None:
    assert page == (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), "run make docs"


def test_the_page_has_a_row_for_every_option_of_train(page: str) -> None:
    rows = page.partition("## translate")[0].count("\n| `")
    assert rows == len({action.dest for actions in make_parser().sections().values() for action in actions})
    assert all(f"\n## {command}\n" in page for command in COMMANDS)


def test_the_page_says_which_options_are_refused_or_have_no_effect(page: str) -> None:
    for name, (_, reason) in options.REFUSED.items():
        assert any(f"`--{name}`" in line and reason in line for line in page.splitlines()), name
    for name, reason in options.NO_EFFECT.items():
        assert any(f"`--{name}`" in line and reason in line for line in page.splitlines()), name
