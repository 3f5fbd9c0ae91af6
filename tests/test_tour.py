"""The tours lead to lines that exist and do what they say, and to pictures that the page has."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "document_tour.py"))
TEXTS = ROOT / "src" / "vanilla_transformer" / "illustrate" / "page" / "texts"
PARTS = ("vectors", "attention", "heads", "sublayers", "decoder", "decoding", "training")
# How a page names a part and a title in it.
SHOWN = {"en": r"part (\d), “([^”]+)”", "ko": r"(\d)부 “([^”]+)”"}
TOURS = {"en": "tour.md", "ko": "tour.ko.md"}


def read(language: str) -> str:
    return (ROOT / "docs" / TOURS[language]).read_text(encoding="utf-8")


@pytest.mark.parametrize("language", TOURS)
def test_links_lead_to_the_lines_that_they_name(language):
    page = read(language)
    assert SCRIPT["update_lines"](page) == page, "run make docs"
    links = re.findall(r"\[`([^`]+)`\]\(\.\./src/([^)#]+)#L(\d+)\)", page)
    assert len(links) == page.count("](../src/") > 20
    for text, file, number in links:
        line = (ROOT / "src" / file).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()
        name = text.rpartition(".")[2]
        assert line.startswith(text) or re.match(rf"(class|def) {name}\b", line), (text, line)


def test_a_line_that_is_gone_or_there_twice_is_an_error(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("class A:\n    def f(self): ...\n\n\nx = 1\nx = 1\n")
    find_line = SCRIPT["find_line"]
    assert (find_line("A", file), find_line("A.f", file), find_line("def f(", file)) == (1, 2, 2)
    for text, number in (("x = 1", 2), ("f(", 0)):
        with pytest.raises(ValueError, match=f"has {number} lines that begin with"):
            find_line(text, file)


@pytest.mark.parametrize("language", TOURS)
def test_the_page_has_what_the_tour_says_it_shows(language):
    texts = (TEXTS / f"{language}.js").read_text(encoding="utf-8")
    titles = re.findall(r'^ +"(\w+)\.(?:[\w.]+\.)?title": "([^"]+)"', texts, flags=re.MULTILINE)
    known = {(part, title) for part, title in titles}
    shown = re.findall(SHOWN[language], read(language))
    assert len(shown) > 15 and {number for number, _ in shown} == set("1234567")
    for number, title in shown:
        assert (PARTS[int(number) - 1], title) in known, (number, title)


def test_both_languages_have_the_same_tour():
    links = [re.findall(r"\[`([^`]+)`\]\(\.\./src/", read(language)) for language in TOURS]
    assert links[0] == links[1]
    parts = [[number for number, _ in re.findall(SHOWN[language], read(language))] for language in TOURS]
    assert parts[0] == parts[1]
    assert read("en").count("\n## ") == read("ko").count("\n## ")
