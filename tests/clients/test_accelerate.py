"""accelerate keeps weights elsewhere and brings them in while a layer computes."""

from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from pairs import CLOSE, Pair, assert_same_translations, make_batch, translations
from torch import nn

CPU = torch.device("cpu")


def on_disk_in_part(model: nn.Module, folder) -> nn.Module:
    """Dispatch the decoder to the disk and the rest to the CPU."""
    places = {"model.shared": "cpu"} if model.config.tie_word_embeddings else {}
    places |= {"model.encoder": "cpu", "model.decoder": "disk", "lm_head": "cpu"}
    if hasattr(model, "final_logits_bias"):
        places["final_logits_bias"] = "cpu"
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


WAYS: dict[str, Callable] = {
    "cpu": lambda model, folder: cpu_offload(model, CPU),
    "cpu, whole layers": lambda model, folder: cpu_offload(
        model, CPU, preload_module_classes=["VanillaTransformerDecoderLayer", "MarianDecoderLayer"]
    ),
    "cpu with hook": lambda model, folder: cpu_offload_with_hook(model, CPU)[0],
    "disk": lambda model, folder: disk_offload(model, folder, CPU),
    "decoder on disk": on_disk_in_part,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
def test_an_offloaded_model_gives_the_same_logits_loss_and_translations(pair: Pair, batch, labels, way, tmp_path):
    ours, marian = pair
    real = batch["decoder_attention_mask"].bool()
    with torch.no_grad():
        expected, loss = ours(**batch).logits, marian(**batch, labels=labels).loss
    translated = translations(marian, batch)
    offloaded = way(ours, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(offloaded(**batch).logits[real], expected[real], **CLOSE)
        torch.testing.assert_close(offloaded(**batch, labels=labels).loss, loss, **CLOSE)
        torch.testing.assert_close(offloaded.train()(**batch, labels=labels).loss, loss, **CLOSE)
    assert_same_translations(translations(offloaded.eval(), batch), translated)


@ways
def test_offloading_works_for_marian_too(pair: Pair, way, tmp_path):
    """So a failure of the test above is ours."""
    batch = make_batch(3)
    expected = translations(pair.marian, batch)
    assert_same_translations(translations(way(pair.marian, tmp_path), batch), expected)
