"""Save a model in the Hub's layout, and push it in one commit."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..data.files import new_folder
from ..data.tokenization import PreTrainedTokenizerFast
from ..errors import UserError, clean_token, first_line, hide_token
from ..inference.model_files import WEIGHTS, WEIGHTS_INDEX
from ..pipeline_vanilla_transformer import VanillaTransformerTranslationPipeline
from .card import make_card
from .trust import CONFIG_NAME, UNWANTED, check_code

CARD_NAME = "README.md"
TOKENIZER_NAME = "tokenizer.json"
# What transformers reads of a model that the repository held before, beside the files of the new one or in their place.
_LEFT_BY_OTHERS = ("special_tokens_map.json", "added_tokens.json", WEIGHTS, WEIGHTS_INDEX)
# The fields of tokenizer_config.json that are saved, beside those of the special tokens.
_TOKENIZER_FIELDS = (
    "additional_special_tokens",
    "backend",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
    "unicode_normal_form",
)


def save_for_hub(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: ModelCard | None = None,
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that is ready for the Hub, and loads with and without this package.

    It holds the weights as safetensors, the config with all three auto classes and the pipeline, the code of model and
    pipeline, the generation config, the tokenizer's files, which transformers 4 and 5 both load, and the card.

    Args:
        model: The whole model, of this package or loaded with the code that came with it.
        tokenizer: Its tokenizer, whichever class it was loaded by.
        folder: A folder that is new or empty.
        card: The model card, see `make_card`; by default one with what the model itself says.
        texts: Further files by their paths in the folder, such as those of `illustrate.space.make_space`.

    Raises:
        UserError: The folder is not empty or can't be written into, or the model has foreign code, or is not whole.
    """
    _check_whole(model)
    folder = Path(folder)
    card = card or make_card(model, tokenizer, Path(os.path.abspath(folder)).name)
    with new_folder(folder, "model") as partial:
        try:
            _save_model(model, tokenizer, partial)
            _save_tokenizer(tokenizer, partial)
            card.save(partial / CARD_NAME)
            _save_texts(texts or {}, partial)
        except (OSError, SafetensorError) as error:
            full = isinstance(error, SafetensorError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free some space" if full else "check the folder"
            raise UserError(f"can't write the model into {folder}: {first_line(error)}; {remedy}") from error
        check_code(partial, model, f"the model for {folder}")


def _check_whole(model: PreTrainedModel) -> None:
    """Refuse what is not a whole model with ordinary weights: its save would be another model, or none."""
    if any(base.__name__ == "BaseTunerLayer" for module in model.modules() for base in type(module).__mro__):
        raise UserError(
            "the model has an adapter of PEFT; merge it with merge_and_unload() of its PeftModel, and give the model "
            "that this returns"
        )
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"the model is wrapped ({type(model).__name__}); give the model that is inside")
    if not model.can_generate():
        raise UserError(f"a {type(model).__name__} has no output layer; give the whole model that it is a part of")
    if not all(isinstance(weight, torch.Tensor) for weight in model.state_dict().values()):
        raise UserError("the model has quantized weights, which have no safetensors; give it as it was before")


def _save_texts(texts: Mapping[str, str], folder: Path) -> None:
    """Write texts into files of a folder and its subfolders, as UTF-8 with the line ends that they have."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def _save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the model with the code of its classes and of the pipeline.

    Raises:
        UserError: The saved config names another class than the model's.
    """
    here = -1  # the model stays on its device
    pipeline = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device=here)  # type: ignore[arg-type] # any fast tokenizer
    pipeline.tokenizer = None  # saved apart
    before = dict(vars(model.config))
    try:
        pipeline.save_pretrained(folder)
    finally:  # it adds the pipeline to the model's config
        if "custom_pipelines" in before:
            model.config.custom_pipelines = before["custom_pipelines"]
        elif hasattr(model.config, "custom_pipelines"):
            del model.config.custom_pipelines
    auto_map = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["auto_map"]
    saved, own = auto_map["AutoModelForSeq2SeqLM"].rpartition(".")[2], type(model).__name__
    if saved != own:
        raise UserError(
            f"the model is a {own}, but its config has {saved} as AutoModelForSeq2SeqLM; call "
            f'{own}.register_for_auto_class("AutoModelForSeq2SeqLM") before it is saved'
        )


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what makes the tokenizer, under the class name that transformers 4 and 5 both know.

    A tokenizer keeps every field of the tokenizer_config.json that it was loaded from, such as a reference to code, a
    chat template or a path of this machine. None of them is saved on.
    """
    with TemporaryDirectory() as everything:
        tokenizer.save_pretrained(everything)
        shutil.copyfile(Path(everything, TOKENIZER_NAME), folder / TOKENIZER_NAME)
        config = json.loads(Path(everything, TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
    names = {*_TOKENIZER_FIELDS, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    config = {name: value for name, value in config.items() if name in names}
    config["tokenizer_class"] = PreTrainedTokenizerFast.__name__
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / TOKENIZER_CONFIG_FILE).write_text(text, encoding="utf-8")


def push_to_hub(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    repo_id: str,
    card: ModelCard | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    existing_card: Literal["keep", "replace"] | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload the model",
) -> str:
    """Push what `save_for_hub` writes into a repository, in one commit: all of it arrives, or nothing.

    The commit removes files of an earlier model there that transformers would read with the new one's.

    Args:
        model: As in `save_for_hub`.
        tokenizer: As in `save_for_hub`.
        repo_id: "name", or "owner/name"; made if there is none.
        card: As in `save_for_hub`.
        texts: As in `save_for_hub`; a file of such a name in the repository is replaced.
        existing_card: What to do where the repository has a README.md already: "keep" that, or "replace" it.
        private: Whether a new repository is private; otherwise it is what the account's default says.
        token: A token that may write; by default the one stored by `hf auth login`.
        commit_message: The commit's title.

    Returns:
        The repository's full id, "owner/name".

    Raises:
        UserError: The model is not whole; the repository can't be made or written into, is public where `private` is
            set, or has a README.md and `existing_card` does not say what to do; or the upload failed. The message says
            what is there then.
    """
    _check_whole(model)
    token = clean_token(token)
    repo_id = full_id(repo_id, token)
    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_for_hub(model, tokenizer, folder, card or make_card(model, tokenizer, repo_id), texts=texts)
        before = made = None
        try:
            before = _find(api, repo_id)
            if before is None:
                api.create_repo(repo_id, private=private or None)  # False would overrule an organization's default
                before = made = _find(api, repo_id)
            else:
                _check_existing(before, private, existing_card)
                if existing_card == "keep" and CARD_NAME in _files(before):
                    Path(folder, CARD_NAME).unlink()
            files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
            operations: list[Any] = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
            there = _files(before) if before is not None else set()
            left = there.intersection(_LEFT_BY_OTHERS).difference(file.name for file in files)
            operations += [CommitOperationDelete(name) for name in sorted(left)]
            # upload_folder would make several commits where there is much to upload.
            api.create_commit(repo_id, operations, commit_message=commit_message)
        except UserError:
            raise
        except Exception as error:  # of several libraries; whichever it is, the user has to know what is there now
            state = "nothing was sent" if before is None else _what_is_there(api, repo_id, before, made is not None)
            raise UserError(f"the push to {repo_id} failed: {_reason(error, token)}; {state}") from error
    return repo_id


def full_id(repo_id: str, token: str | None = None) -> str:
    """Complete a repository's id with its owner, which defaults to the token's user.

    Raises:
        UserError: The Hub does not know the token, or it has characters that no token has.
    """
    if "/" in repo_id:
        return repo_id
    token = clean_token(token)
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except Exception as error:  # see push_to_hub
        raise UserError(f"the push to {repo_id} failed: {_reason(error, token)}; nothing was sent") from error


def _find(api: HfApi, repo_id: str) -> ModelInfo | None:
    """Ask for the repository; None if there is none that the token can see."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _files(repository: ModelInfo) -> set[str]:
    """List the paths of a repository's files."""
    return {file.rfilename for file in repository.siblings or ()}


def _check_existing(repository: ModelInfo, private: bool, existing_card: str | None) -> None:
    """Refuse a public repository when `private` is set, one with foreign code, and to replace a card unasked."""
    if private and not repository.private:
        raise UserError(
            f"{repository.id} is there already and public; make it private in its settings, or name another"
        )
    for file in sorted(_files(repository)):
        if file.startswith(UNWANTED):
            raise UserError(
                f"{repository.id} has {file}, which makes transformers load foreign code or weights; remove it there, "
                "or name another repository"
            )
    if existing_card is None and CARD_NAME in _files(repository):
        raise UserError(f"{repository.id} has a {CARD_NAME} already; set existing_card to keep or to replace")


def _reason(error: BaseException, token: str | None) -> str:
    """Say what went wrong, in a clause without the token."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub does not know the token, or there is none; log in with `hf auth login`, or give a token"
    said = getattr(error, "server_message", None)
    if status == 403:
        return hide_token(f"the token may not write there ({said or first_line(error)})", token)
    causes = (first_line(cause) for cause in (error, error.__cause__) if cause is not None)
    return hide_token(said or " ".join(causes), token)


def _what_is_there(api: HfApi, repo_id: str, before: ModelInfo, made: bool) -> str:
    """Say what the repository holds after a push that failed, in a clause."""
    try:
        now = _find(api, repo_id)
    except Exception:
        now = None
    if now is None:
        return "the Hub can't be asked what is there, but a push is one commit: all of its files are there, or none"
    if now.sha != before.sha:
        return (
            f"yet the repository has a new commit, {now.sha}: the push most likely arrived and only the answer was lost"
        )
    state = "the repository was made, and is empty" if made else "the repository is as it was before"
    return f"{state}, since no commit was made; push again: what was uploaded to the end is not sent a second time"
