"""The illustrated page in a real Chromium. `make test-browser` runs these tests; the usual suite does not.

CHROMIUM is the path of the browser, by default what is installed; without one the tests are skipped. BROWSER_MODEL is a
folder with a trained model, by default one like the demo's, trained for a minute.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from vanilla_transformer.cli import main

INSTALL = "no Chromium: install Debian's with `apt-get install chromium fonts-noto-cjk`, or set CHROMIUM to its path"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SIZES = {"wide": {"width": 1440, "height": 900}, "narrow": {"width": 390, "height": 844}}
PAYLOAD = re.compile(r'(?<=<script type="application/json" id="payload">).*(?=</script>)')
# As in the Makefile's demo, with fewer steps.
TRAINING = (
    "train --preset tiny --config_overrides encoder_layers=2,decoder_layers=2,dropout=0 --label_smoothing_factor 0 "
    "--vocab_size 400 --per_device_train_tokens 1024 --lr_scheduler_type cosine --learning_rate 0.002 "
    "--warmup_steps 100 --max_steps 400 --eval_steps 100 --save_steps 200 --max_eval_samples 50"
).split()


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(INSTALL)
    return path


@pytest.fixture(scope="session")
def model_folder(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if folder := os.environ.get("BROWSER_MODEL"):
        return Path(folder)
    path = tmp_path_factory.mktemp("model") / "demo"
    main([*TRAINING, "--output_dir", str(path)])
    return path


@pytest.fixture(scope="session")
def page_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vanilla-transformer illustrate` writes for the model."""
    path = tmp_path_factory.mktemp("page") / "illustrated.html"
    main(["illustrate", "--model_name_or_path", str(model_folder), "--output_file", str(path)])
    return path


@pytest.fixture
def changed_page(page_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """The same page, as if config or generation config had other values; the weights stay."""

    def give(**changes: dict[str, Any]) -> Path:
        document = page_file.read_text(encoding="utf-8")
        found = PAYLOAD.search(document)
        assert found
        payload = json.loads(found[0])
        for part, values in changes.items():
            payload[part] |= values
        path = tmp_path / "changed.html"
        data = json.dumps(payload).replace("<", "\\u003c")
        path.write_text(f"{document[: found.start()]}{data}{document[found.end() :]}", encoding="utf-8")
        return path

    return give


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, page_file: Path) -> Iterator[Callable[..., Page]]:
    """Open the page with the network off. Whatever it then asks for or complains about fails the test."""
    contexts, faults, opened = [], [], set()

    def note_request(request: Request) -> None:
        if request.url not in opened and not request.url.startswith("data:"):
            faults.append(f"request: {request.url}")

    def give(
        size: str = "wide", scheme: str = "light", language: str = "en", file: Path = page_file, **options: Any
    ) -> Page:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", note_request)
        opened.add(file.as_uri())
        page.goto(file.as_uri())
        if language != "en":
            choose(page, f"language-{language}")
        draw_all(page)
        return page

    yield give
    for context in contexts:
        context.close()
    assert not faults


def draw_all(page: Page) -> None:
    """Wait until the parts that are out of sight are drawn as well."""
    page.wait_for_selector("main[aria-busy='false']")


def choose(page: Page, key: str) -> None:
    """Choose a radio button by its data-key; the click waits until its label stands still."""
    page.locator("label", has=page.locator(f"[data-key='{key}']")).first.click()
    page.locator(f"[data-key='{key}']:checked").first.wait_for(state="attached")
    draw_all(page)


def press(page: Page, key: str) -> None:
    page.locator(f"button[data-key='{key}']").click()
    draw_all(page)


def slide(page: Page, key: str, value: float) -> None:
    """Set a slider."""
    page.locator(f"input[data-key='{key}']").fill(str(value))
    draw_all(page)


def write(page: Page, sentence: str) -> None:
    """Type a sentence in place of the one that is there."""
    page.locator("[data-key='sentence']").fill(sentence)
    draw_all(page)


def read_payload(page: Page) -> dict[str, Any]:
    return json.loads(page.locator("#payload").text_content() or "")


def search_example(page: Page) -> dict[str, Any]:
    """The sentence that greedy and beam search translate differently, by which some tests go."""
    example = read_payload(page)["searchExample"]
    if example is None:
        pytest.skip("the command found no sentence for this model that greedy and beam search translate differently")
    return example


def numbers(texts: list[str]) -> list[float]:
    """Read numbers as the page writes them."""
    return [float(text.replace("−", "-").replace("∞", "inf")) for text in texts]


def column(page: Page, table: str, place: int) -> list[str]:
    """The texts of a column of a table's body, whose first column is 1."""
    cells = page.locator(f"{table} tbody tr > :nth-child({place})")
    return [text.strip() for text in cells.all_inner_texts()]
