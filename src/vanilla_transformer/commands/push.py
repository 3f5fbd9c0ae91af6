"""Push a trained model to the Hub, with code, tokenizer and model card, and check that it loads there bit by bit.

vanilla-transformer push --model_name_or_path runs/en-de-averaged --repo_id me/en-de --license apache-2.0

With --output_dir all of it is written into a new folder and checked there, and nothing is pushed. Scores for the card
come from vanilla-transformer evaluate --json.
"""

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils.logging import disable_progress_bar

from ..data.files import check_not_in_use
from ..errors import UserError
from ..hub.card import make_card
from ..hub.provenance import read_scores
from ..hub.push import full_id, push_to_hub, save_for_hub
from ..hub.verify import verify
from ..illustrate.page import make_page
from ..illustrate.space import PAGE_NAME, make_space
from ..inference.loading import load
from ..inference.text_io import decode_arguments
from ..training.record import read_record
from .arguments import CommandParser, names, report_without_effect


@dataclass
class PushArguments:
    """Which model, and where to."""

    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, its run or an average."})
    repo_id: str | None = field(
        default=None, metadata={"help": "The repository, owner/name or name; made if there is none."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Write into this new folder and push nothing; --repo_id is for the card then."}
    )
    private: bool = field(default=False, metadata={"help": "Make a new repository a private one."})
    token: str | None = field(
        default=None, metadata={"help": "Token that may write; by default that of `hf auth login`."}
    )
    commit_message: str = field(default="Upload the model", metadata={"help": "Title of the commit."})
    existing_card: Literal["keep", "replace"] | None = field(
        default=None, metadata={"help": "What to do with a README.md that the repository has already."}
    )
    scores: list[str] = field(
        default_factory=list, metadata={"help": "Files with the output of evaluate --json, for the card."}
    )
    illustrated: bool = field(
        default=False,
        metadata={"help": "Put the page of `illustrate` beside the model, in a folder as a static Space has it."},
    )


@dataclass
class CardArguments:
    """What a model card can't find out by itself."""

    title: str | None = field(default=None, metadata={"help": "Heading of the card; by default the languages."})
    about: str | None = field(default=None, metadata={"help": "For the card: on the data and the purpose."})
    limits: str | None = field(default=None, metadata={"help": "For the card: what else the model is not good for."})
    example: str | None = field(
        default=None, metadata={"help": "Source sentence that the card and the check translate."}
    )
    license: str | None = field(
        default=None, metadata={"help": "License of the weights as the Hub names it, such as apache-2.0."}
    )


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        PushArguments,
        CardArguments,
        prog="vanilla-transformer push",
        doc=__doc__,
        most_used=[
            "model_name_or_path",
            "repo_id",
            "output_dir",
            "private",
            "token",
            "license",
            "scores",
            "example",
            "illustrated",
        ],
        groups={"repository": names(PushArguments), "model card": names(CardArguments)},
    )


def check(arguments: PushArguments, card_arguments: CardArguments, given: set[str]) -> None:
    """Refuse arguments that can't be; print a line for those that have no effect.

    Args:
        arguments: The command's arguments.
        card_arguments: Those for the card; texts become UTF-8 whatever the locale.
        given: Names of the options that the command line gives.

    Raises:
        UserError: One sentence on what to give instead.
    """
    if not (arguments.repo_id or arguments.output_dir):
        raise UserError("give a --repo_id to push to, or an --output_dir to write into")
    if arguments.repo_id is not None:
        try:
            validate_repo_id(arguments.repo_id)
        except HFValidationError as error:
            raise UserError(f"--repo_id is {arguments.repo_id!r}; it must be name or owner/name") from error
    texts = {name: text for name, text in vars(card_arguments).items() if text is not None}
    for name, text in zip(texts, decode_arguments(list(texts.values())), strict=True):
        if not text.strip():
            raise UserError(f"--{name} is blank; give a text, or leave it out")
        setattr(card_arguments, name, text)
    if card_arguments.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", card_arguments.license):
        raise UserError(
            f"--license is {card_arguments.license!r}; it must be a license as the Hub names it, such as apache-2.0, "
            "mit or other"
        )
    if not arguments.commit_message.strip():
        raise UserError("--commit_message is blank; give a title for the commit")
    if arguments.output_dir:
        check_not_in_use(arguments.output_dir, "model")
        report_without_effect(given & {"private", "commit_message", "existing_card"}, "--output_dir pushes nothing")
        if Path(arguments.model_name_or_path).is_dir():
            report_without_effect(given & {"token"}, "nothing is loaded from the Hub, and nothing pushed")


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    parser = make_parser()
    arguments, card_arguments = parser.parse(argv)
    disable_progress_bar()
    check(arguments, card_arguments, parser.given(argv))
    if arguments.output_dir:
        model_id = arguments.repo_id or Path(os.path.abspath(arguments.output_dir)).name
    else:
        model_id = full_id(arguments.repo_id, arguments.token)

    model, tokenizer = load(arguments.model_name_or_path, token=arguments.token, device="cpu")
    texts = {}
    if arguments.illustrated:
        page = make_page(model, tokenizer, arguments.model_name_or_path, name=model_id, sentence=card_arguments.example)
        texts = make_space(page, model_id, card_arguments.license)
    card = make_card(
        model,
        tokenizer,
        model_id,
        page=PAGE_NAME if arguments.illustrated else None,
        record=read_record(arguments.model_name_or_path),
        scores=[read_scores(path, model) for path in arguments.scores],
        **asdict(card_arguments),
    )
    if arguments.output_dir:
        place: str | Path = Path(arguments.output_dir)
        save_for_hub(model, tokenizer, arguments.output_dir, card, texts=texts)
        print(f"The model is in {place}")
    else:
        place = push_to_hub(
            model,
            tokenizer,
            model_id,
            card,
            texts=texts,
            existing_card=arguments.existing_card,
            private=arguments.private,
            token=arguments.token,
            commit_message=arguments.commit_message,
        )
        print(f"The model is at {constants.ENDPOINT}/{place}")
    if card_arguments.license is None:
        print("The card names no license; --license gives one.")
    for line in verify(place, model, tokenizer, token=arguments.token, sentence=card_arguments.example, texts=texts):
        print(line)
