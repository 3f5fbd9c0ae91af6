"""The page computes in the browser what the model computes in Python, and every control changes what it says."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import choose, column, draw_all, numbers, press, read_payload, search_example, slide, write
from playwright.sync_api import Page, expect
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import vanilla_transformer  # noqa: F401 # registers the model with the auto classes
from vanilla_transformer.inference.translate import translate

PARTS = range(1, 8)
SENTENCES = ["twelve", "nine hundred and ninety-nine", "forty thousand, three hundred and twelve"]
TWENTY = "nine hundred and ninety-nine thousand, eight hundred and eighty-eight thousand two hundred and o"
KEYS = 12  # presses that are timed
FORMULAS = (
    "bpe embedding positions attention softmax multiHead feedForward residual layerNorm mask encoderAttention output "
    "greedy beamSearch lengthPenalty loss"
).split()


@pytest.fixture(scope="module")
def model(model_folder: Path):
    return AutoModelForSeq2SeqLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path):
    return AutoTokenizer.from_pretrained(model_folder)


def test_translation_is_that_of_translate(open_page: Callable[..., Page], model, tokenizer) -> None:
    page = open_page()
    for sentence, (expected, *_) in zip(
        SENTENCES, translate(model, tokenizer, SENTENCES, num_beams=4, length_penalty=0.6), strict=True
    ):
        write(page, sentence)
        expect(page.locator("#translation")).to_have_text(expected.text)


def test_results_and_scores_are_those_of_translate(open_page: Callable[..., Page], model, tokenizer) -> None:
    page = open_page()
    write(page, SENTENCES[1])
    for num_beams, length_penalty, results in ((4, 0.6, 3), (6, 1.5, 5), (2, 0.0, 2)):
        slide(page, "numBeams", num_beams)
        slide(page, "lengthPenalty", length_penalty)
        slide(page, "numResults", results)
        (expected,) = translate(
            model,
            tokenizer,
            SENTENCES[1:2],
            num_beams=num_beams,
            length_penalty=length_penalty,
            num_return_sequences=results,
        )
        hypotheses = page.locator("table.results tbody tr th bdi").all_inner_texts()
        assert hypotheses == [hypothesis.text or "∅" for hypothesis in expected]
        scores = numbers(column(page, "table.results", 5))
        assert scores == pytest.approx([hypothesis.score for hypothesis in expected], abs=2e-3)


def test_logits_and_probabilities_are_those_of_the_model(open_page: Callable[..., Page], model, tokenizer) -> None:
    page = open_page()
    write(page, SENTENCES[2])
    source = tokenizer(SENTENCES[2], return_tensors="pt").input_ids
    written = model.generate(source, do_sample=False, num_beams=1)
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=written).logits[0]
    for step in range(0, written.shape[1] - 1, 2):
        slide(page, "decoder-step", step)
        tokens = [int(button.get_attribute("data-token")) for button in page.locator("table.likely button").all()]
        assert set(tokens) == set(logits[step].topk(len(tokens)).indices.tolist())
        assert numbers(column(page, "table.likely", 2)[:-1]) == pytest.approx(logits[step][tokens].tolist(), abs=6e-3)
        expected = logits[step].softmax(-1)[tokens].tolist()
        assert numbers(column(page, "table.likely", 3)[:-1]) == pytest.approx(expected, abs=1e-3)


def test_attention_weights_are_those_of_the_model(open_page: Callable[..., Page], model, tokenizer) -> None:
    page = open_page()
    write(page, SENTENCES[1])
    source = tokenizer(SENTENCES[1], return_tensors="pt").input_ids
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.get_encoder()(source, output_attentions=True).attentions
    for layer, head, word in ((0, 0, 0), (0, 3, 2), (1, 1, 3)):
        choose(page, f"attention-word-{word}")
        choose(page, f"layer-{layer}")
        choose(page, f"head-{head}")
        scaled, weights, unscaled = (numbers(column(page, "table.scores", place)) for place in (3, 4, 5))
        assert weights == pytest.approx(attentions[layer][0, head, word].tolist(), abs=1e-3)
        assert torch.tensor(scaled).softmax(-1).tolist() == pytest.approx(weights, abs=1e-2)
        dots = torch.tensor(numbers(column(page, "table.scores", 2)))
        root = math.sqrt(model.config.d_model / model.config.encoder_attention_heads)
        assert (dots / root).tolist() == pytest.approx(scaled, abs=1e-2)
        assert dots.softmax(-1).tolist() == pytest.approx(unscaled, abs=2e-2)


def drawn(page: Page) -> list[str]:
    """What each part shows: its texts and its drawings."""
    return [page.locator(f"#part-{part}").evaluate("part => part.innerText + part.innerHTML") for part in PARTS]


CONTROLS = {
    "attention-word-1": (1, 2, 3, 4),
    "layer-1": (2,),
    "head-2": (2,),
    "part3Layer-1": (3,),
    "view-matrix": (3, 5),
    "part4Layer-1": (4,),
    "decoderLayer-1": (5,),
    "decoderHead-1": (5,),
}


def test_every_choice_changes_its_parts(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, SENTENCES[1])
    for key, parts in CONTROLS.items():
        before = drawn(page)
        choose(page, key)
        changed = [part for part, old, new in zip(PARTS, before, drawn(page), strict=True) if old != new]
        assert set(parts) <= set(changed), key
    for key, value, part in (
        ("dimension", 9, 1),
        ("decoder-step", 2, 5),
        ("numBeams", 7, 6),
        ("lengthPenalty", 1.4, 6),
        ("numResults", 6, 6),
        ("classic-step", 12, 7),
    ):
        before = drawn(page)
        slide(page, key, value)
        changed = [number for number, old, new in zip(PARTS, before, drawn(page), strict=True) if old != new]
        assert part in changed, key


def test_a_swap_moves_vectors_with_positions_only(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, "seven thousand and two")
    page.locator("[data-key='swap-one']").select_option("0")
    page.locator("[data-key='swap-other']").select_option("2")
    draw_all(page)
    table = "#part-1 .block:last-child table"
    assert min(numbers(column(page, table, 2))) > 0
    assert set(column(page, table, 3)) == {"0.00"}
    before = page.locator("[data-key='sentence']").input_value()
    press(page, "swap-write")
    assert page.locator("[data-key='sentence']").input_value() != before


def test_the_decoder_goes_on_with_the_token_that_is_pressed(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, SENTENCES[1])
    slide(page, "decoder-step", 1)
    before = page.locator(".written").inner_text()
    other = page.locator("table.likely button[aria-pressed='false']").first
    token = other.get_attribute("data-token")
    other.click()
    draw_all(page)
    pressed = page.locator("table.likely button[aria-pressed='true']")
    assert pressed.get_attribute("data-token") == token
    assert page.locator(".written").inner_text() != before
    press(page, "decoder-previous")
    press(page, "decoder-next")
    press(page, "decoder-reset")
    assert page.locator(".written").inner_text() == before.replace("✎", "")


def test_later_positions_are_at_minus_infinity(open_page: Callable[..., Page]) -> None:
    page = open_page()
    write(page, "seven thousand")
    area = page.locator("[data-key='masked-scores']")
    area.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output", has_text="−∞").count() == 1
    page.locator("[data-key='masked-weights']").focus()
    page.keyboard.press("End")
    assert "0.000" in page.locator("#part-5 output.filled").inner_text()


def test_the_example_of_the_search_is_explained(open_page: Callable[..., Page], page_file: Path) -> None:
    page = open_page()
    example = search_example(page)
    press(page, "load-example")
    assert page.locator("[data-key='sentence']").input_value() == example["source"]
    expect(page.locator("#translation")).to_have_text(example["beam"])
    reason = page.locator(".reason-text").inner_text()
    assert "greedy" in reason.lower()
    scores = numbers(column(page, "table.compare", 4))
    assert scores == pytest.approx([example["greedyScore"], example["beamScore"]], abs=2e-3)
    rows = page.locator("table.compare tbody th").all_inner_texts()
    assert len(rows) == 2 and rows[0] != rows[1]


def test_the_smallest_training_goes_from_random_to_right(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    classic = read_payload(page)["classic"]
    right = classic["vocabulary"].index(classic["targets"][0])
    for step in (0, len(classic["steps"]) - 1):
        slide(page, "classic-step", step)
        shown = numbers(column(page, ".distributions table:first-child", 2))
        assert shown == pytest.approx(classic["steps"][step]["probabilities"][0], abs=1e-3)
    assert shown.index(max(shown)) == right
    slide(page, "classic-step", 0)
    press(page, "classic-play")  # with reduced motion at once
    assert numbers(column(page, ".distributions table:first-child", 2)) == pytest.approx(shown)


def test_the_training_is_played_and_stopped(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.locator("[data-key='classic-play']").scroll_into_view_if_needed()
    press(page, "classic-play")
    expect(page.locator("[data-key='classic-step']")).not_to_have_value("0")
    press(page, "classic-play")
    stopped = page.locator("[data-key='classic-step']").input_value()
    page.wait_for_timeout(900)
    assert page.locator("[data-key='classic-step']").input_value() == stopped


@pytest.mark.parametrize("language", ["en", "ko"])
def test_each_formula_opens_the_source_that_computes_it(open_page: Callable[..., Page], language: str) -> None:
    page = open_page(language=language)
    sources = read_payload(page)["sources"]
    for key in FORMULAS:
        button = page.locator(f"button[data-source='{key}']").first
        button.click()
        dialog = page.locator("dialog[open]")
        assert dialog.locator("pre").text_content() == sources[key]["code"]
        assert sources[key]["name"] in dialog.inner_text()
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        assert button.evaluate("button => button === document.activeElement")


def test_the_language_is_switched_as_a_whole(open_page: Callable[..., Page]) -> None:
    page = open_page()
    english = page.locator("main").inner_text()
    assert not any("\uac00" <= character <= "\ud7a3" for character in english)
    choose(page, "language-ko")
    assert page.locator("html").get_attribute("lang") == "ko"
    assert page.locator("[data-key='language-ko']").evaluate("radio => radio === document.activeElement")
    for heading in page.locator("main h2, main h3, main legend, main .block-text p").all_inner_texts():
        assert any("\uac00" <= character <= "\ud7a3" for character in heading), heading
    choose(page, "language-en")
    assert page.locator("main").inner_text() == english


def test_a_key_press_is_drawn_in_time(open_page: Callable[..., Page], record_property, capsys) -> None:
    """Times are logged, not asserted: they are those of a machine that may be busy."""
    page = open_page()
    lines = []
    for part in PARTS:
        page.locator(f"#part-{part}").scroll_into_view_if_needed()
        page.evaluate("performance.clearMeasures()")
        write(page, TWENTY)
        page.locator("[data-key='sentence']").press("End")
        for _ in range(KEYS // 2):
            for key in ("Backspace", "n"):
                page.keyboard.press(key)
                draw_all(page)
        measures = page.evaluate(
            "performance.getEntriesByName('key press').slice(1).map((m) => [m.duration, m.detail.tokens])"
        )
        durations = sorted(duration for duration, _ in measures)
        assert len(durations) == KEYS and max(tokens for _, tokens in measures) >= 18
        middle = durations[KEYS // 2]
        record_property(f"key press, part {part}, ms", round(middle))
        lines.append(f"part {part}: median {middle:.0f} ms, slowest {durations[-1]:.0f} ms")
    with capsys.disabled():
        print("\na key press in a sentence of about 20 tokens, drawn:", "; ".join(lines))
