"""What a config, a tokenizer and a model answer, to the bit, so that two processes can compare.

`hub.verify` asks what is in memory. Run as a program, this file is the other process: it loads the same from a folder
or the Hub through every auto class, first where this package can't be imported and then with it, and writes the
answers into a file. Hence it imports nothing of the package.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

NUM_BEAMS = 4


PACKAGE = Path(__file__).parents[1]


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the tensors' dtypes, shapes and bits."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's parameters, each tied matrix once, in the order of their names."""
    return digest(*(weight for _, weight in sorted(model.named_parameters())))


def config_answers(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that make the model."""
    return {name: getattr(config, name) for name in type(config).__annotations__}


def tokenizer_answers(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> dict[str, Any]:
    """The sentences' token ids, and the text that these give back."""
    ids = tokenizer(list(sentences))["input_ids"]
    return {"token ids": ids, "decoded text": tokenizer.batch_decode(ids, skip_special_tokens=True)}


@torch.inference_mode()
def base_answers(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """The decoder's output for a sentence as source and target."""
    ids = torch.tensor([token_ids])
    return {"last hidden state": digest(model(input_ids=ids, decoder_input_ids=ids).last_hidden_state)}


@torch.inference_mode()
def model_answers(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """The weights, the logits for a sentence as source and target, generate()'s defaults and a beam translation."""
    ids = torch.tensor([token_ids])
    defaults = model.generation_config.to_diff_dict()
    return {
        "weights": weights_digest(model),
        "logits": digest(model(input_ids=ids, decoder_input_ids=ids).logits),
        "generation config": {name: defaults[name] for name in sorted(defaults) if name != "transformers_version"},
        "beam translation": model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=NUM_BEAMS).tolist()[0],
    }


def load_and_answer(question: dict[str, Any], trust_remote_code: bool) -> dict[str, dict[str, Any]]:
    """Load through every auto class and answer.

    Args:
        question: "source", a folder or a Hub id; "sentences" for the tokenizer; "token_ids" of one for the models.
        trust_remote_code: Whether to run the code that comes with the model.

    Returns:
        The answers by the name of the auto class; where one does not load, the reason as "error".
    """
    ask: dict[Any, Callable[[Any], dict[str, Any]]] = {
        AutoConfig: config_answers,
        AutoTokenizer: lambda tokenizer: tokenizer_answers(tokenizer, question["sentences"]),
        AutoModel: lambda model: base_answers(model, question["token_ids"]),
        AutoModelForSeq2SeqLM: lambda model: model_answers(model, question["token_ids"]),
    }
    answers = {}
    for auto_class, answer in ask.items():
        try:
            loaded = auto_class.from_pretrained(question["source"], trust_remote_code=trust_remote_code)
            answers[auto_class.__name__] = answer(loaded)
        except Exception as error:  # whatever it is, it goes into the report
            answers[auto_class.__name__] = {"error": f"{type(error).__name__}: {error}"}
    return answers


class _Hidden(MetaPathFinder):
    """Answers that this package is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == PACKAGE.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def hidden_package() -> Iterator[None]:
    """Inside, this package can't be imported."""
    finder = _Hidden()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def main() -> None:
    """Answer the question in the file of the first argument, into that of the second."""
    question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(question["threads"])
    with hidden_package():
        answers = {"without": load_and_answer(question, trust_remote_code=True)}
    sys.path.insert(0, str(PACKAGE.parent))
    __import__(PACKAGE.name)
    answers["with"] = load_and_answer(question, trust_remote_code=False)
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
