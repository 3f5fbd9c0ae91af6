"""The page is whole, and holds what it was given and nothing else that a browser would run."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest
from helpers import wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.illustrate import page as page_module
from vanilla_transformer.illustrate.page import MAX_TOKENS, assemble, find_modules, make_page, write_page
from vanilla_transformer.training.record import write_record

TEXTS = ["forty-two", "seven thousand", "quarante-deux", "sept mille"] * 2
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u2028&lt;"
DATA = {"source_lang": "en", "target_lang": "fr", "max_source_length": 9, "max_target_length": 9}
FILES = {"train_file": "train", "validation_file": "val"}


class Elements(html.parser.HTMLParser):
    """The elements of a document in order: tag, attributes, and text up to the next tag."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[list] = []
        self.is_open = False
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        self.is_open = True

    def handle_endtag(self, tag):
        self.is_open = False

    def handle_data(self, data):
        if self.is_open:
            self.found[-1][2] += data

    def text(self, tag: str, **attributes: str) -> str:
        (text,) = (text for found, attrs, text in self.found if found == tag and attributes.items() <= attrs.items())
        return text

    def payload(self) -> dict:
        return json.loads(self.text("script", id="payload"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    return wordy_model(tokenizer)


@pytest.fixture
def folder(model, tokenizer, tmp_path, monkeypatch) -> Path:
    """A folder with a model and the record of its run on a few sentences; the six words are not trained."""
    monkeypatch.setattr(page_module, "train_classic", lambda: {"steps": []})
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    write_record(tmp_path / "run", {"data": DATA | FILES})
    for lang, sentences in (("en", TEXTS[:2]), ("fr", TEXTS[2:4])):
        (tmp_path / f"val.{lang}").write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_the_page_has_every_key_that_its_scripts_read(model, tokenizer, folder):
    payload = Elements(make_page(model, tokenizer, folder, language="ko")).payload()
    assert payload.keys() >= {"config", "generation", "dtype", "tensors", "tokenizer"}  # see test_payload.py
    assert payload["sentence"] == "forty-two" and payload["language"] == "ko" and payload["maxTokens"] == MAX_TOKENS
    assert (payload["source_lang"], payload["target_lang"]) == ("en", "fr")
    assert payload["model"] == {"name": "run", "parameters": model.num_parameters()}
    assert payload["classic"] == {"steps": []} and payload["run"] is None
    assert "searchExample" in payload and "loss" in payload["sources"]  # see test_search_example.py, test_sources.py


def test_the_same_model_gives_the_same_bytes(model, tokenizer, folder, tmp_path):
    for name in ("one.html", "two.html"):
        write_page(model, tokenizer, tmp_path / name, model_name_or_path=folder)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_what_is_not_known_of_a_model_is_null(model, tokenizer, folder):
    payload = Elements(make_page(model, tokenizer, "somebody/model")).payload()
    assert payload["run"] is payload["searchExample"] is payload["source_lang"] is payload["target_lang"] is None
    assert payload["sentence"] == "Attention is all you need." and payload["model"]["name"] == "somebody/model"


def test_modules_and_weights_arrive_byte_by_byte(model, tokenizer, folder):
    elements = Elements(make_page(model, tokenizer, folder))
    imports = json.loads(elements.text("script", type="importmap"))["imports"]
    assert imports.keys() == {name for name, _ in find_modules()}
    for name, path in find_modules():
        kind, _, code = imports[name].partition(",")
        source = path.read_bytes().decode()
        assert kind == "data:text/javascript;base64"
        assert base64.b64decode(code).decode() == f"{source}\n//# sourceURL={name[1:]}\n"
        for imported in re.findall(r"""(?:from|import)\s*\(?["']([^"']+)["']""", source):
            assert imported in imports, f"{name} imports {imported}"
    assert elements.text("script", type="module") == 'import "#page/ui/main.js";' and "#page/ui/main.js" in imports
    _, weights = page_module.make_payload(model, tokenizer)
    assert base64.b64decode(elements.text("script", id="weights"), validate=True) == weights


def test_the_policy_allows_what_the_page_has_and_nothing_from_elsewhere(model, tokenizer, folder):
    elements = Elements(make_page(model, tokenizer, folder))
    (policy,) = (attrs["content"] for tag, attrs, _ in elements.found if "http-equiv" in attrs)
    allowed = {name: words for name, *words in (rule.split() for rule in policy.split(";"))}

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = [elements.text("script", type=kind) for kind in ("importmap", "module")]
    assert allowed["default-src"] == ["'none'"]
    assert allowed["script-src"] == [*map(digest, scripts), "data:"]
    assert allowed["style-src"] == [digest(elements.text("style"))]
    assert allowed["base-uri"] == allowed["form-action"] == ["'none'"]
    first = [tag for tag, attrs, _ in elements.found if tag in ("meta", "script", "style")]
    assert first[:2] == ["meta", "meta"], "the policy comes after the charset, and before what it is about"
    for _, attrs, _ in elements.found:  # what the policy would not let through
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        assert attrs.get("href", "").partition(":")[0] in ("", "data") and "src" not in attrs


def test_no_text_of_a_model_becomes_markup(model, folder, tmp_path):
    tags = [tag for tag, *_ in Elements(make_page(model, train_tokenizer(TEXTS, 280), folder)).found]
    tokenizer = train_tokenizer([*TEXTS, *[HOSTILE.replace(" ", "")] * 50], 270)
    tokenizer.add_tokens([HOSTILE])
    record = {"data": DATA | FILES | {"source_lang": HOSTILE, "target_lang": HOSTILE}, "command": HOSTILE}
    hostile = tmp_path / HOSTILE.replace("/", "-")
    hostile.mkdir()
    write_record(hostile, record)
    (hostile / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": HOSTILE}, HOSTILE]}))
    document = make_page(wordy_model(tokenizer), tokenizer, hostile, sentence=HOSTILE.replace("\u2028", " "))
    elements = Elements(document)
    assert [tag for tag, *_ in elements.found] == tags
    payload = elements.payload()
    assert payload["sentence"] == HOSTILE.replace("\u2028", " ") and payload["source_lang"] == HOSTILE
    assert payload["model"]["name"] == hostile.name and payload["run"] is None
    assert any(token["content"] == HOSTILE for token in payload["tokenizer"]["added_tokens"])
    assert "\u2028" not in document


def test_tokens_of_the_hub_are_masked(model, tokenizer, tmp_path, folder):
    token = "hf_" + "a" * 34
    assert token not in make_page(model, tokenizer, folder.rename(tmp_path / token))


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "the sentence is blank; give one with at least a word"),
        (" \t\u3000", "the sentence is blank"),
        ("\u200b\x07", "the sentence is blank"),
        ("one\ntwo", "the sentence has a line break; give one line"),
        ("seven " * 400, "tokens; give one of at most 64"),
    ],
)
def test_a_sentence_that_the_page_can_not_show_is_refused(sentence, message, model, tokenizer, folder):
    with pytest.raises(UserError, match=message):
        make_page(model, tokenizer, folder, sentence=sentence)


@pytest.mark.parametrize("sentence", ["seven", "日本語 🙂", "אחת", "a\u200b\x07", "</s> <pad>", "a" * 40])
def test_any_other_sentence_arrives_as_it_is(sentence, model, tokenizer, folder):
    assert Elements(make_page(model, tokenizer, folder, sentence=sentence)).payload()["sentence"] == sentence


def test_a_page_that_fails_leaves_no_file(model, tokenizer, folder, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    for name in ("page.htm.gz", "page", "page.pdf"):
        with pytest.raises(UserError, match="must end in .html"):
            write_page(model, tokenizer, tmp_path / name, model_name_or_path=folder)
    monkeypatch.setattr(page_module, "make_page", lambda *args, **kwargs: "\ud800")  # can't be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        write_page(model, tokenizer, tmp_path / "page.html", model_name_or_path=folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mark_in_the_data_is_no_mark_and_a_missing_one_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "page.html").write_text(
        "<!doctype html><!-- policy --><!-- styles --><p><!-- payload --><!-- modules -->", encoding="utf-8"
    )
    (tmp_path / "page.css").write_text("/* <!-- modules --> */", encoding="utf-8")
    monkeypatch.setattr(page_module, "PAGE", tmp_path)
    elements = Elements(assemble({"sentence": "<!-- modules -->"}, b"\x00\xff"))
    assert elements.payload() == {"sentence": "<!-- modules -->"} and elements.text("style") == "/* <!-- modules --> */"
    assert json.loads(elements.text("script", type="importmap")) == {"imports": {}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        assemble({"loss": float("nan")}, b"")
    (tmp_path / "page.html").write_text("<!-- styles --><!-- policy -->", encoding="utf-8")
    with pytest.raises(ValueError, match="page.html has no mark for styles"):
        assemble({}, b"")
