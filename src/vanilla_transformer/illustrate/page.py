"""One HTML file in which a trained model runs in the browser and explains itself, without server or network.

The folder `page` has what is the same in every file: markup, styles, the modules of the engine and of the interface,
and the texts. Here they are put together with the model, its run and the examples.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import check_new_output, new_output
from ..data.secrets import mask_secrets
from ..errors import UserError
from ..hub.provenance import Run
from ..language_tags_vanilla_transformer import is_blank
from ..training.record import read_record
from .classic import train_classic
from .payload import make_payload
from .run import example_pairs, example_sentence, read_curves
from .search_example import find_search_example
from .sources import collect_sources

PAGE = Path(__file__).with_name("page")
ENTRY = "#page/ui/main.js"
MAX_TOKENS = 64  # of the source: each token is a row or a column of every picture
Language = Literal["en", "ko"]

_UNSAFE = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def write_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_file: str | Path,
    *,
    model_name_or_path: str | Path,
    sentence: str | None = None,
    language: Language = "en",
) -> None:
    """Write the page to a new file; it appears whole or not at all.

    Args:
        model: As in `make_page`.
        tokenizer: As in `make_page`.
        output_file: A file that does not exist, which ends in .html.
        model_name_or_path: As in `make_page`.
        sentence: As in `make_page`.
        language: As in `make_page`.

    Raises:
        UserError: As in `make_page`, or the file exists or can't be written.
    """
    check_page_file(output_file)
    page = make_page(model, tokenizer, model_name_or_path, sentence=sentence, language=language)
    with new_output(output_file) as file:
        file.write(page)


def check_page_file(output_file: str | Path) -> None:
    """Refuse a path that no page can be written to, before anything is computed.

    Raises:
        UserError: It does not end in .html, the file exists, or its folder does not.
    """
    if Path(output_file).suffix.lower() != ".html":
        raise UserError(f"the output file {output_file} must end in .html, by which a browser knows a page")
    check_new_output(output_file)


def make_page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_name_or_path: str | Path,
    *,
    name: str | None = None,
    sentence: str | None = None,
    language: Language = "en",
) -> str:
    """Make the page of a model. The same model, run and arguments give the same text on the same machine.

    The model of six words is trained on the way, and a sentence is looked for that greedy and beam search translate
    differently; both take a few seconds.

    Args:
        model: The whole model, in eval mode.
        tokenizer: Its tokenizer.
        model_name_or_path: Where the model was loaded from. If it is a folder, the curve and the data of the run come
            from there.
        name: What the page calls the model; by default the folder's name, or the id on the Hub.
        sentence: The source that the page begins with; by default one that the run did not train on.
        language: Of the texts that the page begins with, "en" or "ko".

    Raises:
        UserError: The page can't show such a model, the sentence is blank, too long or has line breaks, or the record
            of the run can't be read.
    """
    payload, weights = make_payload(model, tokenizer)
    if sentence is not None:
        check_sentence(sentence)
        _check_length(sentence, tokenizer)
    is_folder = Path(model_name_or_path).is_dir()
    data = Run.from_record(read_record(model_name_or_path)).data if is_folder else None
    pairs = example_pairs(data, tokenizer, MAX_TOKENS)
    payload |= {
        "source_lang": _only_language(data.source_lang) if data else None,
        "target_lang": _only_language(data.target_lang) if data else None,
        "sentence": sentence or example_sentence(data, pairs, tokenizer),
        "maxTokens": MAX_TOKENS,
        "searchExample": find_search_example(model, tokenizer, pairs),
        "classic": train_classic(),
        "run": read_curves(model_name_or_path) if is_folder else None,
        "sources": collect_sources(),
        "language": language,
        "model": payload["model"] | {"name": name or page_name(model_name_or_path)},
    }
    return assemble(payload, weights)


def page_name(model_name_or_path: str | Path) -> str:
    """Name a model as the page shows it: its id on the Hub, or the last part of a folder, with tokens masked."""
    path = Path(model_name_or_path)
    return mask_secrets(path.resolve().name if path.is_dir() else str(model_name_or_path))


def check_sentence(sentence: str) -> None:
    """Refuse a source that no page can show, before a model is loaded.

    Raises:
        UserError: It is blank or has a line break.
    """
    if is_blank(sentence):
        raise UserError("the sentence is blank; give one with at least a word")
    if len(sentence.splitlines()) > 1:
        raise UserError("the sentence has a line break; give one line")


def _check_length(sentence: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a source of more than `MAX_TOKENS` tokens."""
    tokens = len(tokenizer(sentence, verbose=False)["input_ids"])
    if tokens > MAX_TOKENS:
        raise UserError(f"the sentence has {tokens:,} tokens; give one of at most {MAX_TOKENS}")


def _only_language(languages: str | list[str]) -> str | None:
    """Return the language of a record's entry, or None where it has several."""
    several = {languages} if isinstance(languages, str) else set(languages)
    return several.pop() if len(several) == 1 else None


def assemble(payload: Mapping[str, Any], weights: bytes) -> str:
    """Put the files of the folder `page` together with the data.

    Args:
        payload: What the scripts read; JSON without NaN.
        weights: The tensors, as `payload["tensors"]` describes them.
    """
    styles = (PAGE / "page.css").read_text(encoding="utf-8")
    modules = json.dumps({"imports": {name: _data_url(name, path) for name, path in find_modules()}})
    entry = f'import "{ENTRY}";'
    # Inline scripts and styles are allowed by their digests, and modules as data: URLs. Nothing can be fetched.
    policy = (
        f"default-src 'none'; script-src {_digest(modules)} {_digest(entry)} data:; style-src {_digest(styles)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
    parts = {
        "policy": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "styles": f"<style>{styles}</style>",
        "payload": (
            f'<script type="application/json" id="payload">{data}</script>\n'
            '<script type="application/octet-stream;base64" id="weights">'
            f"{base64.b64encode(weights).decode()}</script>"
        ),
        "modules": f'<script type="importmap">{modules}</script>\n<script type="module">{entry}</script>',
    }
    before, page = "", (PAGE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():  # each after the other, so that no part is taken for a mark
        between, mark, page = page.partition(f"<!-- {name} -->")
        if not mark:
            raise ValueError(f"page.html has no mark for {name}, or not in the order of {', '.join(parts)}")
        before += between + part
    return before + page


def find_modules() -> list[tuple[str, Path]]:
    """List the JavaScript modules of the page by the names under which they import each other, in order."""
    files = sorted(PAGE.rglob("*.js"), key=lambda path: path.relative_to(PAGE).as_posix())
    return [(f"#page/{path.relative_to(PAGE).as_posix()}", path) for path in files]


def _data_url(name: str, path: Path) -> str:
    """Make the URL that a module is loaded from; errors in the browser name its file."""
    source = path.read_text(encoding="utf-8") + f"\n//# sourceURL={name.removeprefix('#')}\n"
    return f"data:text/javascript;base64,{base64.b64encode(source.encode()).decode()}"


def _digest(text: str) -> str:
    """Form the source expression of a Content Security Policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
