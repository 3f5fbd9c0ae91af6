"""torchinfo lists layers, shapes and parameters."""

import torchinfo
from pairs import Pair, places
from torch import nn


def rows_of(model: nn.Module, batch: dict) -> dict[str, tuple]:
    """Return input and output sizes and the number of parameters by the module's name."""
    names = {id(module): name for name, module in model.named_modules()}
    summary = torchinfo.summary(model, input_data=batch, depth=9, verbose=0)
    return {
        names[info.layer_id if info.layer_id in names else id(info.module)]: (info.output_size, info.num_params)
        for info in summary.summary_list
    }


def test_layers_have_the_shapes_and_parameters_that_they_have_in_marian(pair: Pair, batch):
    ours, marian = (rows_of(model, batch) for model in pair)
    for name in [*places(pair.ours), "model.encoder.embed_tokens", "model.decoder.embed_tokens"]:
        assert ours[name] == marian[name], name


def test_the_total_is_that_of_marian_but_for_its_tables_of_positions(pair: Pair, batch):
    """A matrix that several modules share is counted with each of them, in both models."""
    ours, marian = (torchinfo.summary(model, input_data=batch, verbose=0) for model in pair)
    tables = sum(p.numel() for name, p in pair.marian.named_parameters() if "embed_positions" in name)
    assert tables and ours.total_params == marian.total_params - tables
    assert ours.total_output_bytes and ours.trainable_params == ours.total_params
