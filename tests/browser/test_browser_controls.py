"""What the reader does with mouse and finger arrives where it was meant, and the page says what the model does."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import choose, column, draw_all, numbers, press, read_payload, search_example, slide, write
from playwright.sync_api import Locator, Page, expect

SENTENCE = "nine hundred and ninety-nine"
LONG = "nine hundred and ninety-nine thousand, eight hundred and eighty-eight"
# Of each slider the part, and what follows it there.
SLIDERS = {
    "dimension": (1, ".legend"),
    "decoder-step": (5, "table.likely"),
    "numBeams": (6, "svg.tree"),
    "lengthPenalty": (6, "table.results"),
    "numResults": (6, "table.results"),
    "classic-step": (7, ".distributions"),
}
UNLIKE_THE_PAPER = {"scale_embedding": False, "activation_function": "gelu", "position_convention": "fairseq"}


def focused(page: Page) -> str:
    """The data-key of the focused element, or its id."""
    return page.evaluate("document.activeElement.dataset.key ?? document.activeElement.id")


@pytest.mark.parametrize("key", SLIDERS)
def test_a_slider_is_dragged_through_many_values(open_page: Callable[..., Page], key: str) -> None:
    page, undragged = (open_page(reduced_motion="reduce") for _ in range(2))
    for one in (page, undragged):
        write(one, SENTENCE)
    part, shown = SLIDERS[key]
    picture = page.locator(f"#part-{part} {shown}").first
    slider = page.locator(f"input[data-key='{key}']")
    slider.evaluate("slider => slider.scrollIntoView({ block: 'center' })")
    box = slider.bounding_box()
    assert box

    def move(share: float, steps: int = 1) -> None:
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=steps)

    move(0.05)
    page.mouse.down()
    values, pictures = [], []
    for share in (0.05, 0.35, 0.65, 0.95):
        move(share, steps=3)
        values.append(float(slider.input_value()))
        pictures.append(picture.inner_html())
    page.mouse.up()
    page.wait_for_timeout(50)
    draw_all(page)
    assert values == sorted(set(values)) and float(slider.input_value()) == values[-1]
    assert len(set(pictures)) == 4 and picture.inner_html() == pictures[-1]
    assert focused(page) == key
    slide(undragged, key, values[-1])
    texts = [one.locator(f"#part-{part}").inner_text() for one in (page, undragged)]
    assert texts[0] == texts[1]


def test_a_tap_shows_the_value_under_the_finger(open_page: Callable[..., Page]) -> None:
    page = open_page("narrow", has_touch=True)
    write(page, SENTENCE)
    strip = page.locator("[data-key='embedding-strips'] svg.strip").nth(1)
    width = strip.evaluate("strip => strip.getBoundingClientRect().width")
    strip.tap(position={"x": round(width * 0.6), "y": 10})
    dimension = math.floor(round(width * 0.6) / width * read_payload(page)["config"]["d_model"])
    expect(page.locator("#part-1 output.filled")).to_contain_text(f"dimension {dimension}:")


def test_a_tap_on_a_matrix_shows_the_cell_and_chooses_its_row(open_page: Callable[..., Page]) -> None:
    page = open_page("narrow", has_touch=True)
    write(page, SENTENCE)
    choose(page, "view-matrix")
    area = page.locator("[data-key='heads-matrix-1']")
    area.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expected = page.locator("#part-3 output.filled").inner_text()
    page.evaluate("document.activeElement.blur()")
    ground = area.locator(".ground").evaluate(
        "ground => ['x', 'y', 'width', 'height'].map((name) => Number(ground.getAttribute(name)))"
    )
    cell = ground[2] / page.locator("[data-key^='heads-word-']").count()
    area.locator("svg").tap(position={"x": ground[0] + 2.5 * cell, "y": ground[1] + 1.5 * cell})
    draw_all(page)
    assert page.locator("[data-key='heads-word-1']").is_checked()
    expect(page.locator("#part-3 output.filled")).to_have_text(expected)


def test_the_translation_in_the_bar_is_that_of_the_search(open_page: Callable[..., Page]) -> None:
    page = open_page()
    example = search_example(page)
    press(page, "load-example")
    bar, result = page.locator("#translation"), page.locator("#part-6 .result").nth(1)
    expect(bar).to_have_text(example["beam"])
    slide(page, "numBeams", 1)
    expect(bar).to_have_text(example["greedy"])
    slide(page, "numBeams", 8)
    for alpha in (0, 1, 2):
        slide(page, "lengthPenalty", alpha)
        expect(bar).to_have_text(result.inner_text())


@pytest.mark.parametrize(
    ("settings", "beams", "penalty"),
    [
        ({"num_beams": 12, "length_penalty": 1.25}, "12", "1.25"),
        ({"num_beams": 4, "length_penalty": -0.5}, "4", "−0.5"),
        ({"num_beams": 2, "length_penalty": 3}, "2", "3.0"),
    ],
)
def test_sliders_show_the_settings_of_the_model(
    open_page: Callable[..., Page],
    changed_page: Callable[..., Path],
    settings: dict[str, float],
    beams: str,
    penalty: str,
) -> None:
    page = open_page(file=changed_page(generation=settings))
    own = settings["length_penalty"]

    def check(alpha: float) -> None:
        lengths = numbers(column(page, "table.results", 2))
        divisors = numbers(column(page, "table.results", 4))
        assert divisors == pytest.approx([((5 + length) / 6) ** alpha for length in lengths], abs=1e-3)

    for key, shown in (("numBeams", beams), ("lengthPenalty", penalty)):
        slider = page.locator(f"input[data-key='{key}']")
        assert slider.locator("xpath=../output").inner_text() == slider.get_attribute("aria-valuetext") == shown
    assert float(page.locator("input[data-key='lengthPenalty']").input_value()) == own
    check(own)
    for alpha in (0, 0.6, own):
        slide(page, "lengthPenalty", alpha)
        check(alpha)


@pytest.mark.parametrize(("language", "switched_off"), [("en", "switched off"), ("ko", "꺼져")])
def test_a_model_unlike_the_paper_is_explained_as_it_is(
    open_page: Callable[..., Page], changed_page: Callable[..., Path], language: str, switched_off: str
) -> None:
    def block(page: Page, key: str) -> Locator:
        """The block of part 1 with this picture."""
        return page.locator("#part-1 .block", has=page.locator(f"[data-key='{key}']"))

    def first_value(page: Page) -> tuple[list[str], str]:
        page.locator("[data-key='position-picture']").focus()
        text = block(page, "position-picture").locator("output.filled").inner_text()
        position, value = text.split(":")
        return [word for word in position.replace(",", " ").split() if word.isdigit()], value

    def shown(page: Page) -> tuple[Any, ...]:
        embedding, positions = block(page, "embedding-strips"), block(page, "position-picture")
        return (
            embedding.locator("math msqrt").count(),
            "√" in embedding.locator("h3").inner_text() + embedding.locator("tbody").inner_text(),
            embedding.locator("tbody tr").count(),
            positions.locator("math").text_content().count("(dmodel−2)"),
            positions.locator(".remark").count(),
            switched_off in page.locator("#part-4").inner_text(),
        )

    page = open_page(language=language)
    assert shown(page) == (1, True, 4, 0, 0, True)
    assert numbers([first_value(page)[1]]) == [0]
    page = open_page(language=language, file=changed_page(config=UNLIKE_THE_PAPER))
    assert shown(page) == (0, False, 3, 2, 1, False)
    first = read_payload(page)["config"]["pad_token_id"] + 1
    words, value = first_value(page)
    assert str(first) in words
    assert numbers([value]) == pytest.approx([math.sin(first)], abs=6e-3)
    assert f"= {first}" in block(page, "position-picture").locator(".remark").inner_text()


def test_only_tokens_that_were_pressed_are_marked(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, SENTENCE)

    def force(step: int) -> list[int]:
        """Press a token at a step; returns the places that are marked then."""
        slide(page, "decoder-step", step)
        page.locator("table.likely button[aria-pressed='false']").filter(has_not_text="</s>").first.click()
        draw_all(page)
        tokens = page.locator(".written li").all()[1:]  # without the start token
        return [place for place, token in enumerate(tokens) if token.locator(".forced").count()]

    assert force(2) == [2]
    assert force(1) == [1]
    assert force(2) == [1, 2]
    press(page, "decoder-reset")
    assert page.locator(".forced").count() == 0
    assert focused(page) == "part-5"
    assert force(2) == [2]
    write(page, f"{SENTENCE} thousand")
    assert page.locator(".forced").count() == 0


def test_the_decoder_goes_on_as_far_as_the_search(
    open_page: Callable[..., Page], changed_page: Callable[..., Path]
) -> None:
    page = open_page(file=changed_page(generation={"eos_token_id": [], "max_new_tokens": None}))
    write(page, LONG)
    written = page.locator(".written li").count()
    assert written - 1 == int(page.locator(".amount").inner_text().split()[0]) + 50 > 60
    page.locator("table.likely button[aria-pressed='false']").first.click()
    draw_all(page)
    assert page.locator(".written li").count() == written


def test_playing_ends_where_the_language_is_switched(open_page: Callable[..., Page]) -> None:
    page = open_page()
    step = page.locator("[data-key='classic-step']")
    page.locator("[data-key='classic-play']").scroll_into_view_if_needed()
    press(page, "classic-play")
    expect(step).not_to_have_value("0")
    choose(page, "language-ko")
    stopped = step.input_value()
    page.wait_for_timeout(900)
    assert step.input_value() == stopped
    assert page.locator("[data-key='classic-play']").inner_text() == "재생"


def test_a_table_stays_open_when_it_is_drawn_anew(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, SENTENCE)
    table = page.locator("#part-4 details").first
    table.locator("summary").click()
    values = table.locator("td").all_inner_texts()
    assert len(values) > 8
    choose(page, "sublayers-word-1")
    assert table.get_attribute("open") is not None
    assert table.locator("table").count() == 1 and table.locator("td").all_inner_texts() != values
    assert page.locator("#part-4 details[open]").count() == 1


def test_the_focus_stays_in_the_part_whose_button_is_gone(open_page: Callable[..., Page]) -> None:
    page = open_page()
    search_example(page)
    page.locator("[data-key='load-example']").focus()
    page.keyboard.press("Enter")
    draw_all(page)
    assert page.locator("[data-key='load-example']").count() == 0
    assert focused(page) == "part-6"
