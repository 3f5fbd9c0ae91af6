"""The source texts of the page are those of the functions that run."""

from pathlib import Path

import pytest

import vanilla_transformer
from vanilla_transformer.illustrate.sources import FUNCTIONS, collect_sources

PACKAGE = Path(vanilla_transformer.__file__).parent
KEYS = (
    "bpe embedding positions attention softmax multiHead feedForward residual layerNorm mask encoderAttention output "
    "greedy beamSearch lengthPenalty loss"
).split()


@pytest.mark.parametrize("key", KEYS)
def test_a_source_stands_where_it_says(key):
    source = collect_sources()[key]
    lines = (PACKAGE / source["file"]).read_text(encoding="utf-8").splitlines()
    first, code = source["line"] - 1, source["code"].splitlines()
    assert [line.strip() for line in lines[first : first + len(code)]] == [line.strip() for line in code]
    compile(source["code"], source["file"], "exec")
    assert f"def {source['name'].rpartition('.')[2]}(" in source["code"]


def test_every_formula_has_one():
    assert set(FUNCTIONS) == set(KEYS)
