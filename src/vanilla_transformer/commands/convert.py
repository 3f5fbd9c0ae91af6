"""Convert a checkpoint of fairseq's transformer (post-norm) into a model folder.

vanilla-transformer convert checkpoint_best.pt --dict data-bin/dict.en.txt --output_dir runs/converted

fairseq is not needed, and no code that the checkpoint names is run. Those of OpenNMT-py are refused with the reason.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from transformers.utils.logging import disable_progress_bar

from ..convert.fairseq import convert_checkpoint


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="vanilla-transformer convert", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a .pt file of fairseq")
    parser.add_argument(
        "--dict",
        nargs="+",
        required=True,
        help="fairseq's dict.<lang>.txt; both of them where source and target have an embedding each",
    )
    parser.add_argument("--output_dir", required=True, help="new folder for the model")
    arguments = parser.parse_args(argv)
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
