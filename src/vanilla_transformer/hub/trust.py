"""Which code transformers would run from a model's folder, and whether it is code that this process has already.

`trust_remote_code` runs what config.json names, without asking whose it is. Before a folder is shared, or loaded with
that flag, all of its code must be a copy of this package's files or of the files that define the model in memory.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import UserError

CONFIG_NAME = "config.json"
# transformers runs the first with a model that it loads, asked or not; the second makes it load another model.
UNWANTED = ("custom_generate/", "adapter_config.json")

_PACKAGE = Path(__file__).parents[1]
_REFERENCES = ("auto_map", "custom_pipelines")
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation")  # with a slash: code of a repository on the Hub
_CLASS = re.compile(r"(\w+)\.\w+", re.ASCII)


def check_code(folder: Path, model: PreTrainedModel, name: str) -> None:
    """Refuse a folder with code that this process does not have already. Nothing of the folder is run.

    Args:
        folder: Files of a model; other files than code and JSON are not looked at.
        model: The model in memory, whose own code is trusted.
        name: What to call the folder.

    Raises:
        UserError: A file names code of another repository or in another place, or a code file is unknown.
    """
    for unwanted in UNWANTED:
        if (folder / unwanted).exists():
            raise UserError(f"{name} has {unwanted}, which makes transformers load foreign code or weights; remove it")
    modules = set()
    for path in sorted(folder.glob("*.json")):
        if path.name == "tokenizer.json":  # data of the library tokenizers; it names no code
            continue
        for key, reference in _find_references(json.loads(path.read_text(encoding="utf-8"))):
            match = _CLASS.fullmatch(reference)
            if path.name != CONFIG_NAME or match is None:
                raise UserError(f"{name}: {path.name} has the {key} {reference!r}, which is foreign code; remove it")
            modules.add(match[1])
    trusted = _trusted_digests(model)
    files = [folder / f"{module}.py" for module in sorted(modules)]
    while files:
        file = files.pop()
        if not file.exists():  # nothing to run; loading will say what is missing
            continue
        if _digest(file) not in trusted:
            raise UserError(
                f"{name}: {file.name} is neither this package's nor the model's own code, so it is not run; save the "
                "model again into a new place"
            )
        files += [Path(sibling) for sibling in get_relative_import_files(file) if Path(sibling).exists()]


def _find_references(content: Any) -> Iterator[tuple[str, str]]:
    """Yield what a JSON file names to be imported, by the key that does so."""
    if not isinstance(content, dict):
        return
    for key in _REFERENCES:
        for reference in _references_under(key, content.get(key)):
            yield key, reference
    for key in _IMPLEMENTATIONS:
        if "/" in str(content.get(key)):
            yield key, str(content[key])


def _references_under(key: str, value: Any) -> Iterator[str]:
    """Yield each class that stands under `auto_map` or, as "impl", in `custom_pipelines`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _references_under(key, item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if key == "auto_map" or name == "impl" or isinstance(item, dict):
                yield from _references_under(key, item)


def _trusted_digests(model: PreTrainedModel) -> set[str]:
    """Digest this package's files that travel, and the files that define the classes of model and config."""
    files = set(_PACKAGE.glob("*.py"))
    for part in (type(model), type(model.config)):
        try:
            file = Path(inspect.getfile(part))
        except (OSError, TypeError):  # defined in an interactive session
            continue
        if file.exists():
            files |= {file, *map(Path, get_relative_import_files(file))}
    return {_digest(file) for file in files if file.exists()}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
