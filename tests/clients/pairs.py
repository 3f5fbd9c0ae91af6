"""Our model and transformers' MarianMT with the same weights, and what the tests of this folder compare.

All imports of the package and of the other tests' helpers are here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from helpers import EOS, PAD, SIZES, labels_of, ragged_batch, random_ids, small_model
from torch import nn
from torch.nn import functional as F
from transformers import MarianMTModel, PreTrainedModel, set_seed

from vanilla_transformer import VanillaTransformerForConditionalGeneration, gnmt_beam_search
from vanilla_transformer.convert.marian import to_marian
from vanilla_transformer.data.tokenization import SPECIAL_TOKENS, dictionary_tokenizer
from vanilla_transformer.modeling_vanilla_transformer import sinusoidal_positions

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STACKS = ("encoder", "decoder")


@dataclass
class Pair:
    """The two models, in eval mode.

    Attributes:
        ours: A `VanillaTransformerForConditionalGeneration`.
        marian: A `MarianMTModel` of the same function, all of whose parameters have our names and our values.
    """

    ours: VanillaTransformerForConditionalGeneration
    marian: MarianMTModel

    def __iter__(self):
        return iter((self.ours, self.marian))


def twin(model: VanillaTransformerForConditionalGeneration) -> MarianMTModel:
    """Return the model as a MarianMT whose features are in our order.

    MarianMT has all sines before all cosines, so `to_marian` moves the features of the residual stream. Here its table
    of positions is laid out as ours instead. Activations, gradients and adapters are then equal element by element.
    """
    marian = to_marian(model)
    table = sinusoidal_positions(torch.arange(marian.config.max_position_embeddings), model.config.d_model)
    tables = {f"model.{stack}.embed_positions.weight": table for stack in STACKS}
    marian.load_state_dict(marian.state_dict() | model.state_dict() | tables)
    return marian


def make_pair(**overrides) -> Pair:
    """Make the same two models each time, for these fields of the config."""
    ours = small_model(**overrides)
    ours.load_state_dict(_weights(tuple(sorted(overrides.items()))))
    return Pair(ours, twin(ours))


@cache
def _weights(overrides: tuple[tuple[str, object], ...]) -> dict[str, torch.Tensor]:
    """Return weights that have half learned to translate the sources of `make_batch`.

    Translations then have several tokens and depend on the source, and none is certain. With weights as they are
    initialized they are the same token again and again.
    """
    batch = make_batch(3)
    set_seed(7)
    model = small_model(**dict(overrides))
    sources = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = random_ids(3, 6)
    targets[:, -1] = EOS
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**sources, labels=targets).loss
        loss.backward()
        optimizer.step()
    return model.state_dict()


def make_batch(rows: int) -> dict[str, torch.Tensor]:
    """Make the inputs of `forward` without labels: one row without padding, or three rows padded on the right."""
    set_seed(8)
    batch = ragged_batch()
    return batch if rows == 3 else {name: tensor[:1] for name, tensor in batch.items()}


def make_labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Make labels for the batch, -100 where its decoder's input is padding."""
    set_seed(9)
    return labels_of(batch["decoder_input_ids"])


def make_tokenizer():
    """Make a tokenizer of words that are the numbers of their ids, for the vocabulary of the models."""
    return dictionary_tokenizer([*SPECIAL_TOKENS, *map(str, range(len(SPECIAL_TOKENS), SIZES["vocab_size"]))])


def stack_of(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the encoder or the decoder, as users get it."""
    return model.get_encoder() if name == "encoder" else model.get_decoder()


def places(model: nn.Module) -> list[str]:
    """Return the names of the modules that both models have and call with the same tensors: linears and norms."""
    kinds = (nn.Linear, nn.LayerNorm)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


class Kept:
    """A forward hook that keeps the first input and the output of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.calls.append((args[0], output))


def is_real(name: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return where the module of this name computes for a token and not for padding, boolean, [batch, length].

    At padding the two models differ: ours counts positions by the mask, MarianMT by the place.
    """
    of_source = ".encoder." in name or name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
    return batch["attention_mask" if of_source else "decoder_attention_mask"].bool()


def loss_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy as users write it for themselves."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def translations(model: nn.Module, batch: dict[str, torch.Tensor], **arguments) -> dict[str, tuple]:
    """Return ids and scores of greedy search, beam search and the paper's search, by the name of the search.

    The scores are those of the sequences, where the search has any.
    """
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    common = {"max_new_tokens": 8, "return_dict_in_generate": True} | arguments
    searches = {
        "greedy": {"num_beams": 1},
        "beam": {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
        "uncached": {"num_beams": 2, "use_cache": False},
        "gnmt": {"custom_generate": gnmt_beam_search, "num_beams": 3, "num_return_sequences": 2},
        "gnmt greedy": {"custom_generate": gnmt_beam_search, "num_beams": 1},
    }
    found = {}
    for search, settings in searches.items():
        output = model.generate(**source, **(common | settings))
        found[search] = (output.sequences, output.get("sequences_scores"))
    return found


def assert_same_translations(found: dict[str, tuple], expected: dict[str, tuple], **tolerances: float) -> None:
    """Compare two results of `translations`: ids exactly, scores within the tolerances."""
    tolerances = tolerances or CLOSE
    assert found.keys() == expected.keys()
    for search, (ids, scores) in expected.items():
        assert torch.equal(found[search][0], ids), f"{search}: {found[search][0].tolist()}, not {ids.tolist()}"
        if scores is not None:
            torch.testing.assert_close(
                found[search][1], scores, **tolerances, msg=lambda text, s=search: f"{s}: {text}"
            )


def differ(found: dict[str, tuple], base: dict[str, tuple]) -> list[str]:
    """Return the searches whose ids or scores differ between two results of `translations`."""
    different = []
    for search, (ids, scores) in base.items():
        same = torch.equal(found[search][0], ids)
        if same and scores is not None:
            same = torch.allclose(found[search][1], scores, rtol=1e-3)
        if not same:
            different.append(search)
    return different


def same_trainable(ours: nn.Module, marian: nn.Module) -> None:
    """Copy all trainable parameters and all buffers of one model to the other's of the same names."""
    own, other = (dict(model.named_parameters(remove_duplicate=False)) for model in (ours, marian))
    trainable, theirs = ({name for name, p in named.items() if p.requires_grad} for named in (own, other))
    assert trainable and trainable == theirs, trainable ^ theirs
    own_buffers, other_buffers = (dict(model.named_buffers(remove_duplicate=False)) for model in (ours, marian))
    with torch.no_grad():
        for name in trainable:
            other[name].copy_(own[name])
        for name, buffer in own_buffers.items():
            other_buffers[name].copy_(buffer)


def train(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    labels: torch.Tensor,
    steps: int = 4,
    learning_rate: float = 0.03,
    own_loss: Callable | None = None,
) -> list[float]:
    """Take some steps of gradient descent in training mode, then put the model in eval mode.

    Args:
        own_loss: A function of logits and labels in place of the model's own loss.

    Returns:
        The loss before each step.
    """
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(**batch, labels=labels)
        loss = outputs.loss if own_loss is None else own_loss(outputs.logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def trainable_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable parameters by name."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def assert_same_parameters(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances: float
) -> None:
    """Compare parameters or gradients by name; the two must have the same names."""
    tolerances = tolerances or CLOSE
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerances, msg=lambda text, n=name: f"{n}: {text}")


def gradients_of(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the gradients by parameter, for those that have one."""
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None and (names is None or name in names)
    }


__all__ = [
    "CLOSE",
    "PAD",
    "STACKS",
    "Kept",
    "Pair",
    "assert_same_parameters",
    "assert_same_translations",
    "differ",
    "gnmt_beam_search",
    "gradients_of",
    "is_real",
    "loss_from_logits",
    "make_batch",
    "make_labels",
    "make_pair",
    "make_tokenizer",
    "places",
    "random_ids",
    "same_trainable",
    "stack_of",
    "to_marian",
    "train",
    "trainable_of",
    "translations",
    "twin",
]
