"""Arguments that commands have in common, and how a command line is parsed."""

from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from ..inference.loading import load
from ..inference.translate import BATCH_TOKENS, MAX_SOURCE_LENGTH


def parse(parser: HfArgumentParser, argv: list[str] | None) -> tuple[Any, ...]:
    """The parser's dataclasses, and the namespace of its other arguments where it has any.

    An option that the parser does not know ends the script as `argparse` does: usage, one line, status 2.

    Args:
        parser: Of which no `.args` file beside the script is looked for.
        argv: The words of the command line; by default those that the script was started with.
    """
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(parsed)


@dataclass
class LoadingArguments:
    """The flags that the scripts which use a trained model have in common."""

    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Token for a private model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with the model."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, ...; by default cuda if it is there."}
    )

    def load(self, model_name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """`load` with these arguments."""
        return load(
            model_name_or_path,
            model_revision=self.model_revision,
            token=self.token,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
        )


@dataclass
class DecodingArguments(LoadingArguments):
    """These, and how to search."""

    num_beams: int | None = field(
        default=None, metadata={"help": "Beam size, 1 is greedy; by default the model's own."}
    )
    length_penalty: float | None = field(
        default=None, metadata={"help": "Above 0 prefers long translations in beam search; by default the model's own."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest translation, in tokens; by default the source's length plus 50."}
    )
    batch_tokens: int = field(
        default=BATCH_TOKENS, metadata={"help": "Source tokens translated together; a GPU takes many more."}
    )
    max_source_length: int = field(
        default=MAX_SOURCE_LENGTH, metadata={"help": "The most tokens of a sentence; what to do with more: --too_long."}
    )
    too_long: str = field(default="cut", metadata={"help": "Cut too long a sentence, with a warning, or refuse it."})

    def settings(self) -> dict[str, int | float]:
        """What to pass on to `translate`: only what was given."""
        names = ("num_beams", "length_penalty", "max_new_tokens", "batch_tokens", "max_source_length", "too_long")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
