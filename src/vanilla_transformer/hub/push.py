"""Save a model as the Hub wants it, and push it in one commit."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..data.files import check_not_in_use, check_writable
from ..data.tokenization import PreTrainedTokenizerFast
from ..errors import UserError, first_line
from ..pipeline_vanilla_transformer import VanillaTransformerTranslationPipeline
from .card import make_card

CARD_NAME = "README.md"


# What transformers writes into a tokenizer's config about where it was loaded from.
_WHERE_FROM = ("is_local", "local_files_only", "name_or_path")


def save_for_hub(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, card: ModelCard | None = None
) -> None:
    """Write a folder that is ready for the Hub, and loads with and without this package.

    It holds the weights as safetensors, the config with all three auto classes and the pipeline, the code of model and
    pipeline, the generation config, the tokenizer's files, which transformers 4 and 5 both load, and the card.

    Args:
        model: The whole model, of this package or loaded with the code that came with it.
        tokenizer: Its tokenizer, whichever class it was loaded by.
        folder: A folder that is new or empty.
        card: The model card, see `make_card`; by default one with what the model itself says.

    Raises:
        UserError: The folder is not empty or can't be written into.
    """
    folder = Path(folder)
    check_not_in_use(folder, "model")
    check_writable(folder)
    card = card or make_card(model, tokenizer, folder.name)
    try:
        here = -1  # the model stays on its device
        pipeline = VanillaTransformerTranslationPipeline(model, tokenizer=tokenizer, device=here)  # type: ignore[arg-type] # any fast tokenizer
        pipeline.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder)
        card.save(folder / CARD_NAME)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't write the model into {folder}: {first_line(error)}; free some space") from error


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer under the class name that transformers 4 and 5 both know, and without this computer's paths."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if name not in _WHERE_FROM}
    config["tokenizer_class"] = PreTrainedTokenizerFast.__name__
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def push_to_hub(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    repo_id: str,
    card: ModelCard | None = None,
    *,
    existing_card: Literal["keep", "replace"] | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload the model",
) -> str:
    """Push what `save_for_hub` writes into a repository, in one commit: all of it arrives, or nothing.

    Args:
        model: As in `save_for_hub`.
        tokenizer: As in `save_for_hub`.
        repo_id: "name", or "owner/name"; made if there is none.
        card: As in `save_for_hub`.
        existing_card: What to do where the repository has a README.md already: "keep" that, or "replace" it.
        private: Whether a new repository is private.
        token: A token that may write; by default the one stored by `hf auth login`.
        commit_message: The commit's title.

    Returns:
        The repository's full id, "owner/name".

    Raises:
        UserError: The repository can't be made or written into, is public where `private` is set, or has a README.md
            and `existing_card` does not say what to do; or the upload failed. The message says what is there then.
    """
    repo_id = full_id(repo_id, token)
    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_for_hub(model, tokenizer, folder, card or make_card(model, tokenizer, repo_id))
        before = made = None
        try:
            before = _find(api, repo_id)
            if before is None:
                api.create_repo(repo_id, private=private)
                before = made = _find(api, repo_id)
            else:
                _check_existing(before, private, existing_card)
                if existing_card == "keep" and CARD_NAME in _files(before):
                    Path(folder, CARD_NAME).unlink()
            additions = [CommitOperationAdd(file.name, file) for file in sorted(Path(folder).iterdir())]
            # upload_folder would make several commits where there is much to upload.
            api.create_commit(repo_id, additions, commit_message=commit_message)
        except UserError:
            raise
        except Exception as error:  # of several libraries; whichever it is, the user has to know what is there now
            there = "nothing was sent" if before is None else _what_is_there(api, repo_id, before, made is not None)
            raise UserError(f"the push to {repo_id} failed: {_reason(error)}; {there}") from error
    return repo_id


def full_id(repo_id: str, token: str | None = None) -> str:
    """A repository's id with its owner; where none is given, that is whose token it is.

    Raises:
        UserError: The Hub does not say whose.
    """
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except Exception as error:  # see push_to_hub
        raise UserError(f"the push to {repo_id} failed: {_reason(error)}; nothing was sent") from error


def _find(api: HfApi, repo_id: str) -> ModelInfo | None:
    """The repository's state, or None if there is none that the token can see."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _files(repository: ModelInfo) -> set[str]:
    return {file.rfilename for file in repository.siblings or ()}


def _check_existing(repository: ModelInfo, private: bool, existing_card: str | None) -> None:
    """Refuse to show the world what was meant to be private, and to write over a card unasked."""
    if private and not repository.private:
        raise UserError(
            f"{repository.id} is there already and public; make it private in its settings, or name another"
        )
    if existing_card is None and CARD_NAME in _files(repository):
        raise UserError(f"{repository.id} has a {CARD_NAME} already; set existing_card to keep or to replace")


def _reason(error: BaseException) -> str:
    """What went wrong, in a clause."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub does not know the token, or there is none; log in with `hf auth login`, or give a token"
    said = getattr(error, "server_message", None)
    if status == 403:
        return f"the token may not write there ({said or first_line(error)})"
    causes = (first_line(cause) for cause in (error, error.__cause__) if cause is not None)
    return said or " ".join(causes)


def _what_is_there(api: HfApi, repo_id: str, before: ModelInfo, made: bool) -> str:
    """What the repository holds after a push that failed, in a clause."""
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
