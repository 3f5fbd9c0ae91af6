"""Check that what was saved or pushed is what is in memory, bit for bit."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import constants, get_token
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, first_line
from . import probe

# What says where caches are; without them all of them are in HF_HOME.
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "HF_XET_CACHE")


def verify(
    source: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token: str | None = None,
    sentence: str | None = None,
) -> list[str]:
    """Check that what was saved or pushed is, bit for bit, what is in memory.

    A fresh process with an empty cache loads it on the CPU through AutoConfig, AutoTokenizer, AutoModel and
    AutoModelForSeq2SeqLM, where this package can't be imported and then with it.

    Args:
        source: A folder as a Path, or a repository's id as a string.
        model: The model that was saved.
        tokenizer: Its tokenizer.
        token: A token for a private repository; by default the one stored by `hf auth login`.
        sentence: What is translated, with a beam of 4; by default "Attention is all you need.".

    Returns:
        A line for each class, on what was compared and is equal.

    Raises:
        UserError: A class does not load it, or something differs; the message names all that does.
    """
    sentence = sentence or "Attention is all you need."
    reference = copy.deepcopy(model).to("cpu").eval()
    reference.set_attn_implementation("sdpa")
    sentences = [sentence, f"  {sentence}\n</s> ...", ""]
    token_ids = tokenizer(sentence)["input_ids"]
    expected = {
        "AutoConfig": probe.config_answers(reference.config),
        "AutoTokenizer": probe.tokenizer_answers(tokenizer, sentences),
        "AutoModel": probe.base_answers(reference.base_model, token_ids),
        "AutoModelForSeq2SeqLM": probe.model_answers(reference, token_ids),
    }
    expected = json.loads(json.dumps(expected))  # as the other process's answers come
    local = isinstance(source, Path)
    question = {
        "source": str(source.resolve()) if local else source,
        "sentences": sentences,
        "token_ids": token_ids,
        "threads": torch.get_num_threads(),
    }
    answers = _ask_a_fresh_process(question, offline=local, token=get_token() if token is None else token)

    problems = []
    for way, by_class in answers.items():
        for name, answer in by_class.items():
            wrong = [f"{what} differ" for what, value in expected[name].items() if answer.get(what) != value]
            if "error" in answer:
                wrong = [first_line(answer["error"])]
            problems += [f"{name} {way} the package: {', '.join(wrong)}"] if wrong else []
    if problems:
        raise UserError(f"{source} does not load as the model in memory: {'; '.join(problems)}")
    translation = tokenizer.decode(expected["AutoModelForSeq2SeqLM"]["beam translation"], skip_special_tokens=True)
    return [
        "AutoConfig: the same fields",
        f"AutoTokenizer: the same token ids and text of {len(sentences)} sentences",
        "AutoModel: the same last hidden state, bit for bit",
        f"AutoModelForSeq2SeqLM: the same weights, logits and beam translation, bit for bit ({translation!r})",
    ]


def _ask_a_fresh_process(question: dict[str, Any], offline: bool, token: str | None) -> dict[str, dict[str, Any]]:
    """The answers of `probe` in a process of its own, with no cache and the Hub of this one."""
    with TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name not in _CACHE_VARIABLES}
        environment |= {"HF_HOME": f"{folder}/cache", "HF_ENDPOINT": constants.ENDPOINT}
        environment |= {"HF_TOKEN": token} if token else {}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        asked, answered = Path(folder, "question.json"), Path(folder, "answers.json")
        asked.write_text(json.dumps(question), encoding="utf-8")
        # -P: the folder of the program, which is this package's, is not searched for modules.
        command = [sys.executable, "-P", probe.__file__, str(asked), str(answered)]
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode != 0:
            last_line = done.stderr.strip().split("\n")[-1]
            raise UserError(f"{question['source']} can't be checked: the fresh process ended with {last_line!r}")
        return json.loads(answered.read_text(encoding="utf-8"))
