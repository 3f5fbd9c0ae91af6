"""The page fits on wide and narrow screens, in both languages, in light and dark, and is usable without a mouse."""

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import choose, draw_all, press, write
from playwright.sync_api import Page

LONG = "nine hundred and ninety-nine thousand, " * 12
SENTENCES = {
    "empty": "",
    "blank": "   ",
    "letter": "x",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 seven 👍🏽",
    "right-to-left": "שבע מאות ותשע‎ ثلاثة",
    "unknown script": "ꦧꦱꦗꦮ 𒀀𒁀 ᚠᚢᚦ",
    "marks": "a" + "\u0301" * 60,
    "control": "a\tb\u0000c\u200bd\u202ee",
    "markup": "<b onclick=alert(1)>&amp;</b> {name} **bold** `code`",
    "one long word": "w" * 300,
    "long": LONG,
}
# A function that lists text outside the window, cut off, or on top of other text.
FIND_FAULTS = Path(__file__).with_name("find_faults.js").read_text(encoding="utf-8")
# Everything that a mouse can use, and whether the keyboard reaches it, in a group of radio buttons by the arrow keys.
REACHABLE = "a[href], button, input:not([type=radio]), select, summary, [tabindex='0']"


def variants(page: Page):
    """The views that hide each other: lines or matrices, and tables of values."""
    yield
    choose(page, "view-matrix")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.wait_for_timeout(50)
    yield


def test_planted_faults_are_found(open_page: Callable[..., Page]) -> None:
    page = open_page("narrow")
    plant = """
      const heading = document.querySelector("#part-6 h3");
      heading.style.position = "relative"; heading.style.insetBlockStart = "2.2rem";
      document.querySelector("#part-7 svg.chart text").setAttribute("x", "-40");
      document.querySelector("#part-2 table").style.inlineSize = "500px";
    """
    page.evaluate(plant)
    faults = "\n".join(page.evaluate(FIND_FAULTS))
    for kind in ("the page is", "outside", "cut", "overlap"):
        assert kind in faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_no_text_overflows_or_overlaps(open_page: Callable[..., Page], size: str, language: str, scheme: str) -> None:
    page = open_page(size, scheme, language)
    for sentence in ("nine hundred and ninety-nine", LONG):
        write(page, sentence)
        for _ in variants(page):
            assert page.evaluate(FIND_FAULTS) == []
        choose(page, "view-lines")


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_unusual_sentences_break_nothing(open_page: Callable[..., Page], size: str) -> None:
    page = open_page(size)
    for name, sentence in SENTENCES.items():
        write(page, sentence)
        assert page.evaluate(FIND_FAULTS) == [], name
        for part in range(1, 8):
            assert len(page.locator(f"#part-{part}").inner_text()) > 300, name
        assert page.locator("b[onclick]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_axe_finds_no_serious_fault(open_page: Callable[..., Page], size: str, language: str, scheme: str) -> None:
    page = open_page(size, scheme, language)
    if "load-example" in page.content():
        press(page, "load-example")
    for _ in variants(page):
        found = Axe().run(page).response["violations"]
        serious = [
            (fault["id"], node["target"], node["failureSummary"])
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"][:3]
        ]
        assert not serious


def test_the_keyboard_reaches_everything(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    expected = page.locator(REACHABLE).evaluate_all(
        "all => all.filter((e) => e.checkVisibility() && !e.closest('dialog')).length"
    )
    page.evaluate("document.activeElement.blur()")
    reached, invisible = set(), []
    for _ in range(expected + 120):
        page.keyboard.press("Tab")
        place = page.evaluate(
            """() => {
              const element = document.activeElement;
              if (!element || element === document.body) return null;
              const shown = element.type === "radio" ? element.nextElementSibling : element;
              const style = getComputedStyle(shown);
              const box = shown.getBoundingClientRect();
              const bar = document.querySelector(".bar-top").getBoundingClientRect().bottom;
              const all = [...document.querySelectorAll("*")];
              return {
                place: all.indexOf(element), radio: element.type === "radio", html: element.outerHTML.slice(0, 120),
                visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0,
                onScreen: box.bottom > (shown.closest("main") ? bar : 0) && box.top < innerHeight,
              };
            }"""
        )
        if place is None:
            break
        if not place["radio"]:
            reached.add(place["place"])
        if not (place["visible"] and place["onScreen"]):
            invisible.append(place["html"])
    assert not invisible
    assert len(reached) == expected
    groups = page.locator("fieldset").count()
    assert page.locator("fieldset input:checked").count() == groups


def test_the_keyboard_works_the_page(open_page: Callable[..., Page]) -> None:
    """A sentence is typed, a word chosen, values read and a token forced, without a mouse."""
    page = open_page()
    page.locator("[data-key='sentence']").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("eight hundred and six")
    draw_all(page)
    page.locator("[data-key='attention-word-0']").focus()
    page.keyboard.press("ArrowRight")
    draw_all(page)
    assert page.evaluate("document.activeElement.dataset.key") == "attention-word-1"
    assert page.locator("[data-key='attention-word-1']").is_checked()
    page.locator("[data-key='attention-keys']").focus()
    first = page.locator("#part-2 output.filled").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#part-2 output.filled").inner_text() != first
    page.locator("[data-key='decoder-next']").focus()
    page.keyboard.press("Enter")
    draw_all(page)
    assert page.evaluate("document.activeElement.dataset.key") == "decoder-next"
    page.locator("[data-key='output-1']").focus()
    page.keyboard.press("Space")
    draw_all(page)
    assert page.locator(".forced").count() == 1
    page.locator("[data-key='tree']").focus()
    texts = []
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        texts.append(page.locator("#part-6 output.filled").inner_text())
    assert len(set(texts)) == 3
    page.locator("[data-key='numBeams']").focus()
    page.keyboard.press("ArrowRight")
    draw_all(page)
    assert page.evaluate("document.activeElement.dataset.key") == "numBeams"
    assert page.locator("[data-key='numBeams']").input_value() == "5"


def test_links_of_the_map_and_of_the_bar_lead_to_the_parts(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    for part in range(1, 8):
        page.locator(f"nav a[href='#part-{part}']").click()
        page.wait_for_timeout(100)
        top, bar = page.evaluate(
            f"[document.querySelector('#heading-{part}').getBoundingClientRect().top,"
            " document.querySelector('.bar-top').getBoundingClientRect().bottom]"
        )
        assert bar - 2 <= top < bar + 200
        assert page.locator(f".map a[href='#part-{part}']").count() >= 1
