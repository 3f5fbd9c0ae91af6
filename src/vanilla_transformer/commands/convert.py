"""Convert a checkpoint of fairseq's transformer (post-norm) into a model folder.

vanilla-transformer convert checkpoint_best.pt --dict data-bin/dict.en.txt --output_dir runs/converted

fairseq is not needed, and no code that the checkpoint names is run. Those of OpenNMT-py are refused with the reason.
"""

from dataclasses import dataclass, field

from transformers.utils.logging import disable_progress_bar

from ..convert.fairseq import convert_checkpoint
from .arguments import CommandParser, names


@dataclass
class ConvertArguments:
    """Which checkpoint, and where to."""

    checkpoint: str = field(metadata={"positional": True, "help": "A .pt file of fairseq."})
    dict: list[str] = field(
        metadata={"help": "fairseq's dict.<lang>.txt; both of them where source and target have an embedding each."}
    )
    output_dir: str = field(metadata={"help": "New folder for the model."})


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        ConvertArguments, prog="vanilla-transformer convert", doc=__doc__, most_used=names(ConvertArguments)
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    (arguments,) = make_parser().parse(argv)
    disable_progress_bar()
    model = convert_checkpoint(arguments.checkpoint, arguments.dict, arguments.output_dir)
    config = model.config
    print(
        f"{config.encoder_layers} + {config.decoder_layers} layers, d_model {config.d_model}, "
        f"{config.encoder_attention_heads} + {config.decoder_attention_heads} heads, "
        f"d_ff {config.encoder_ffn_dim} + {config.decoder_ffn_dim}: {model.num_parameters():,} parameters"
    )
    matrices = "one matrix for embeddings and output" if config.tie_word_embeddings else "three matrices"
    print(f"{config.vocab_size:,} types, {matrices}")
    print("Unlike the paper: fairseq's positions (position_convention), and the decoder starts with </s>")
    print("Text goes in tokenized and segmented as the training data was")
    print(f"The model is in {arguments.output_dir}")
