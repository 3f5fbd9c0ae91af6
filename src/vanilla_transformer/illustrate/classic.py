"""The smallest training that there is: "merci" becomes "thanks", in the six words of the classic explanation.

Alammar's "The Illustrated Transformer" (2018) shows the output of a new model, that of a trained one and the target
beside each other, with invented numbers. Here they are those of a model of this package that is trained on the spot.
"""

from typing import Any

import torch
from transformers import get_inverse_sqrt_schedule

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..training.recipe import noam_peak

VOCABULARY = ("a", "am", "i", "thanks", "student", "<eos>")
EOS = VOCABULARY.index("<eos>")
SOURCE, TARGETS = "merci", ("thanks", "<eos>")
SMOOTHING = 0.1  # section 5.4
WARMUP_STEPS = 100
SEED = 3  # of a model whose first guesses are both wrong
# From random to right, about equally far apart on a logarithmic scale. Step 1 is left out: its learning rate is 0.
RECORDED_STEPS = (0, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 20, 24, 28, 33, 40, 48, 56, 66, 80, 100, 130, 160, 200)
DIGITS = 6  # what is written down


def train_classic() -> dict[str, Any]:
    """Train the model of six words, and record what it predicts on the way.

    Source and target have an embedding each, so that the output layer has the six target words alone. The decoder
    starts with `<eos>`, for want of a seventh word. The random state of the process is as before.

    Returns:
        "source", "target", "targets" (what is predicted at each position), "vocabulary", "smoothing"; "oneHot" and
        "smoothed", the distributions that are aimed at, [positions][words]; and "steps", each with its "step", the
        "probabilities" that the model gives, [positions][words], and the "loss" against the smoothed distribution, in
        nats per word.
    """
    steps = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        source = torch.tensor([[1, EOS]])  # "merci", the only word of its own vocabulary beside <eos>; 0 is padding
        labels = torch.tensor([[VOCABULARY.index(word) for word in TARGETS]])
        torch.manual_seed(SEED)
        model = VanillaTransformerForConditionalGeneration(_config()).train()
        rate = noam_peak(model.config.d_model, WARMUP_STEPS)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-9)  # section 5.3
        schedule = get_inverse_sqrt_schedule(optimizer, WARMUP_STEPS)
        for step in range(RECORDED_STEPS[-1] + 1):
            outputs = model(source, torch.ones_like(source), labels=labels, smoothing=SMOOTHING)
            if step in RECORDED_STEPS:
                steps.append(
                    {
                        "step": step,
                        "probabilities": _rounded(outputs.logits[0].softmax(dim=-1)),
                        "loss": round(outputs.loss.item(), DIGITS),
                    }
                )
            outputs.loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    one_hot = torch.nn.functional.one_hot(labels[0], len(VOCABULARY)).float()
    return {
        "source": SOURCE,
        "target": TARGETS[0],
        "targets": list(TARGETS),
        "vocabulary": list(VOCABULARY),
        "smoothing": SMOOTHING,
        "oneHot": _rounded(one_hot),
        "smoothed": _rounded((1 - SMOOTHING) * one_hot + SMOOTHING / len(VOCABULARY)),  # as in `cross_entropy`
        "steps": steps,
    }


def _config() -> VanillaTransformerConfig:
    """Make the config of a model of one layer and two heads."""
    return VanillaTransformerConfig(
        vocab_size=len(VOCABULARY),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=0.0,  # so that what is drawn is learning alone
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
    )


def _rounded(distributions: torch.Tensor) -> list[list[float]]:
    """List [positions, words] probabilities, rounded."""
    return [[round(value, DIGITS) for value in row] for row in distributions.tolist()]
