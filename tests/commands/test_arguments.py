"""What all scripts do with a command line."""

import pytest


@pytest.mark.parametrize("script", ["train", "evaluate_model", "benchmarks/training", "benchmarks/decoding"])
def test_an_unknown_option_is_refused_in_a_line(run_script, script):
    code, out, err = run_script(script, "--preset_of", "mine")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith(": error: unrecognized arguments: --preset_of mine")
