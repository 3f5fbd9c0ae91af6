"""The program that `verify` runs in a process of its own; its arguments are a file to read and a file to write.

It loads the model from a folder or the Hub through every auto class, first where this package can't be imported and
then with it, and writes what config, tokenizer and models compute. It must not import the package before it is hidden.
Hence it loads this folder, whose modules need nothing else of the package, under another name.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

ALIAS = "hub_of_the_child_process"


def import_from_this_folder(module: str) -> Any:
    """Import a module of this folder without its package."""
    if ALIAS not in sys.modules:
        folder = Path(__file__).parent
        spec = spec_from_file_location(ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None
        sys.modules[ALIAS] = module_from_spec(spec)
    return import_module(f"{ALIAS}.{module}")


answers = import_from_this_folder("answers")
hiding = import_from_this_folder("hiding")


def load_and_answer(question: dict[str, Any], trust_remote_code: bool) -> dict[str, dict[str, Any]]:
    """Load through every auto class and answer.

    Args:
        question: "source", a folder or a Hub id; "revision", the commit of the latter; "sentences" for the tokenizer;
            "token_ids" of one for the models.
        trust_remote_code: Whether to run the code that comes with the model.

    Returns:
        The answers by the name of the auto class; where one does not load, the reason as "error".
    """
    ask: dict[Any, Callable[[Any], dict[str, Any]]] = {
        AutoConfig: answers.config_answers,
        AutoTokenizer: lambda tokenizer: answers.tokenizer_answers(tokenizer, question["sentences"]),
        AutoModel: lambda model: answers.base_answers(model, question["token_ids"]),
        AutoModelForSeq2SeqLM: lambda model: answers.model_answers(model, question["token_ids"]),
    }
    place = {"revision": question["revision"]} if question["revision"] else {}
    answered = {}
    for auto_class, answer in ask.items():
        try:
            loaded = auto_class.from_pretrained(question["source"], trust_remote_code=trust_remote_code, **place)
            answered[auto_class.__name__] = answer(loaded)
        except Exception as error:  # whatever it is, it goes into the report
            answered[auto_class.__name__] = {"error": f"{type(error).__name__}: {error}"}
    return answered


def main() -> None:
    """Answer the question in the file of the first argument, into that of the second."""
    question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(question["threads"])
    with hiding.hidden_package():
        answered = {"without": load_and_answer(question, trust_remote_code=True)}
    sys.path.insert(0, str(hiding.PACKAGE.parent))
    import_module(hiding.PACKAGE.name)
    answered["with"] = load_and_answer(question, trust_remote_code=False)
    Path(sys.argv[2]).write_text(json.dumps(answered), encoding="utf-8")


if __name__ == "__main__":
    main()
