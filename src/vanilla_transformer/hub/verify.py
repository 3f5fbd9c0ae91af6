"""Check that what was saved or pushed is what is in memory, bit for bit."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, clean_token, first_line, hide_token
from .answers import base_answers, config_answers, model_answers, tokenizer_answers
from .trust import check_code

# Variables that say where caches are; without them all caches are in HF_HOME.
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "HF_XET_CACHE")
_PROGRAM = Path(__file__).with_name("child_process.py")
_DEFAULT_SENTENCE = "Attention is all you need."


def verify(
    source: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token: str | None = None,
    sentence: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[str]:
    """Check that what was saved or pushed is, bit for bit, what is in memory.

    A fresh process with an empty cache loads it on the CPU through AutoConfig, AutoTokenizer, AutoModel and
    AutoModelForSeq2SeqLM, where this package can't be imported and then with it. It runs the code of the folder or
    repository, which is hence compared first with the code that is known here; see `trust`.

    Args:
        source: A folder as a Path, or a repository's id as a string.
        model: The model that was saved.
        tokenizer: Its tokenizer.
        token: A token for a private repository; by default the one stored by `hf auth login`.
        sentence: What is translated, with a beam of 4; by default "Attention is all you need.".
        texts: Further files that were saved or pushed, by their paths.

    Returns:
        A line for each class, and for each further file, on what was compared and is equal.

    Raises:
        UserError: It has foreign code, a class does not load it, or something differs; the message names all that does.
    """
    token = clean_token(token) or get_token()
    revision = None
    if isinstance(source, Path):
        check_code(source, model, str(source))
    else:
        revision = _check_code_on_hub(source, model, token)
    _check_texts(source, revision, texts or {}, token)
    sentence = sentence or _DEFAULT_SENTENCE
    sentences = [sentence, f"  {sentence}\n</s> ...", ""]
    token_ids = tokenizer(sentence)["input_ids"]
    expected = _answers_in_memory(model, tokenizer, sentences, token_ids)
    question = {
        "source": str(source.resolve()) if isinstance(source, Path) else source,
        "revision": revision,
        "sentences": sentences,
        "token_ids": token_ids,
        "threads": torch.get_num_threads(),
    }
    answers = _ask_fresh_process(question, offline=isinstance(source, Path), token=token)
    if problems := _list_problems(expected, answers):
        differences = hide_token("; ".join(problems), token)
        raise UserError(f"{source} does not load as the model in memory: {differences}")
    translation = tokenizer.decode(expected["AutoModelForSeq2SeqLM"]["beam translation"], skip_special_tokens=True)
    return [
        "AutoConfig: the same fields",
        f"AutoTokenizer: the same vocabulary, special tokens, and ids and text of {len(sentences)} sentences",
        "AutoModel: the same last hidden state, bit for bit",
        f"AutoModelForSeq2SeqLM: the same weights, logits and beam translation, bit for bit ({translation!r})",
        *(f"{name}: the same bytes" for name in texts or {}),
    ]


def _check_code_on_hub(repo_id: str, model: PreTrainedModel, token: str | None) -> str:
    """Check the code and JSON files of a repository, and return the commit that was checked."""
    try:
        commit = HfApi(token=token).model_info(repo_id).sha
        with TemporaryDirectory() as folder:
            snapshot_download(
                repo_id, revision=commit, token=token, allow_patterns=["*.py", "*.json"], local_dir=folder
            )
            check_code(Path(folder), model, repo_id)
    except UserError:
        raise
    except Exception as error:  # of several libraries, and of the network
        reason = hide_token(first_line(error), token)
        raise UserError(f"{repo_id} can't be checked: {reason}; check it again later") from error
    if commit is None:
        raise UserError(f"{repo_id} can't be checked: the Hub names no commit of it; check it again later")
    return commit


def _check_texts(source: str | Path, revision: str | None, texts: Mapping[str, str], token: str | None) -> None:
    """Compare files of a folder, or of a repository at a commit, with the texts that were written into them.

    Raises:
        UserError: A file is missing, or has other bytes.
    """
    with TemporaryDirectory() as downloaded:
        folder = source if isinstance(source, Path) else Path(downloaded)
        if isinstance(source, str) and texts:
            try:
                snapshot_download(source, revision=revision, token=token, allow_patterns=[*texts], local_dir=downloaded)
            except Exception as error:  # as in `_check_code_on_hub`
                reason = hide_token(first_line(error), token)
                raise UserError(f"{source} can't be checked: {reason}; check it again later") from error
        for name, text in texts.items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode():
                raise UserError(f"{source}: {name} is not there, or not as it was written; save or push it again")


def _answers_in_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], token_ids: list[int]
) -> dict[str, dict[str, Any]]:
    """Compute what the child process must answer, by the names of the auto classes."""
    reference = copy.deepcopy(model).to("cpu").eval()  # type: ignore[arg-type] # PreTrainedModel.to has no usable types
    reference.set_attn_implementation("sdpa")
    answers = {
        "AutoConfig": config_answers(reference.config),
        "AutoTokenizer": tokenizer_answers(tokenizer, sentences),
        "AutoModel": base_answers(reference.base_model, token_ids),
        "AutoModelForSeq2SeqLM": model_answers(reference, token_ids),
    }
    return json.loads(json.dumps(answers))  # as the other process's answers come


def _list_problems(expected: dict[str, dict[str, Any]], answers: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """List the classes that do not load, or answer otherwise than expected, in either way of loading."""
    problems = []
    for way, by_class in answers.items():
        for name, answer in by_class.items():
            wrong = [f"{what} differ" for what, value in expected[name].items() if answer.get(what) != value]
            if "error" in answer:
                wrong = [first_line(answer["error"])]
            problems += [f"{name} {way} the package: {', '.join(wrong)}"] if wrong else []
    return problems


def _ask_fresh_process(question: dict[str, Any], offline: bool, token: str | None) -> dict[str, dict[str, Any]]:
    """Run `child_process` with an empty cache and with the Hub of this process; return its answers.

    The token is handed over in the environment and is never in a file.
    """
    with TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name not in _CACHE_VARIABLES}
        environment |= {"HF_HOME": f"{folder}/cache", "HF_ENDPOINT": constants.ENDPOINT}
        environment |= {"HF_TOKEN": token} if token else {}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        asked, answered = Path(folder, "question.json"), Path(folder, "answers.json")
        asked.write_text(json.dumps(question), encoding="utf-8")
        # -P: the program's folder is not searched for modules.
        done = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM), str(asked), str(answered)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode != 0:
            last_line = hide_token(done.stderr.strip().split("\n")[-1], token)
            raise UserError(f"{question['source']} can't be checked: the fresh process ended with {last_line!r}")
        return json.loads(answered.read_text(encoding="utf-8"))
