"""Hooks, replaced modules and per-module gradients at every place, as torch's own users and many programs set them."""

from collections.abc import Callable

import pytest
import torch
from pairs import (
    CLOSE,
    STACKS,
    Kept,
    assert_same_parameters,
    assert_same_translations,
    differ,
    gradients_of,
    is_real,
    loss_from_logits,
    make_batch,
    make_labels,
    make_pair,
    places,
    stack_of,
    train,
    trainable_of,
    translations,
)
from torch import nn

PLACES = places(make_pair().ours)
EMBEDDINGS = [f"model.{stack}.embed_tokens" for stack in STACKS]
SUBLAYERS = ["fc1", "fc2", "self_attn.out_proj", "encoder_attn.q_proj", "encoder_attn.out_proj", "final_layer_norm"]
SOME_PLACES = [f"model.decoder.layers.1.{name}" for name in SUBLAYERS] + ["model.encoder.layers.0.fc2", "lm_head"]
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
with_dropout = pytest.mark.parametrize("dropout", [0.0, 0.3])


def changed_output(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """Change an output, as steering vectors do."""
    return output * 1.5 + 0.1


class Scaled(nn.Module):
    """A module in another's place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x)) * self.scale


def replace(model: nn.Module, name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, wrap(getattr(owner, child)))


@modes
@with_dropout
@pytest.mark.parametrize("with_labels", [False, True], ids=["no labels", "labels"])
def test_what_a_forward_hook_keeps_is_the_module_applied_to_its_input(
    pair, batch, labels, training, dropout, with_labels
):
    """Also after the whole forward pass: nobody writes into a tensor that a hook still holds."""
    model = make_pair(dropout=dropout).ours.train(training)
    kept = {name: Kept() for name in PLACES}
    for name, hook in kept.items():
        model.get_submodule(name).register_forward_hook(hook)
    model(**batch, **({"labels": labels} if with_labels else {}))
    wrong = []
    for name, hook in kept.items():
        module = model.get_submodule(name)
        assert len(hook.calls) == 1, name
        (x, y), forward = hook.calls[0], type(module).forward
        if not torch.allclose(forward(module, x), y, atol=1e-5):
            wrong.append(name)
    assert not wrong


@modes
def test_forward_hooks_see_what_they_see_in_marian(pair, batch, training):
    seen = []
    for model in pair:
        model.train(training)
        kept = {name: Kept() for name in [*PLACES, *EMBEDDINGS]}
        for name, hook in kept.items():
            model.get_submodule(name).register_forward_hook(hook)
        model(**batch)
        seen.append({name: [tensor.detach() for call in hook.calls for tensor in call] for name, hook in kept.items()})
    ours, marian = seen
    for name, tensors in marian.items():
        assert len(ours[name]) == len(tensors), f"{name} was called {len(ours[name]) / 2} times"
        for tensor, expected in zip(ours[name], tensors, strict=True):
            assert tensor.shape == expected.shape, name
            mask = is_real(name, batch)
            torch.testing.assert_close(tensor[mask], expected[mask], **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


@modes
@torch.no_grad()
def test_an_output_written_back_changes_nothing(batch, training):
    model = make_pair().ours.train(training)
    expected = model(**batch).logits
    changed = []
    for name in PLACES:
        kept = Kept()
        with model.get_submodule(name).register_forward_hook(kept):
            model(**batch)
        with model.get_submodule(name).register_forward_hook(lambda *_, output=kept.calls[0][1]: output):
            if not torch.equal(model(**batch).logits, expected):
                changed.append(name)
    assert not changed


@modes
@torch.no_grad()
def test_a_forward_hook_that_changes_the_output_gives_the_loss_of_marian(pair, batch, labels, training):
    unchanged = float(pair.marian(**batch, labels=labels).loss)
    wrong = {}
    for name in [*PLACES, *EMBEDDINGS]:
        losses = []
        for model in pair:
            with model.train(training).get_submodule(name).register_forward_hook(changed_output):
                losses.append(float(model(**batch, labels=labels).loss))
        assert losses[1] != pytest.approx(unchanged, abs=1e-6), name
        if losses[0] != pytest.approx(losses[1], abs=1e-5):
            wrong[name] = losses
    assert not wrong


@pytest.mark.parametrize(
    "name", [*SOME_PLACES, *EMBEDDINGS, "model.decoder.layers.2", "model.decoder", "model.encoder"]
)
def test_a_forward_hook_is_obeyed_by_all_searches(pair, name):
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))

    def changed(module: nn.Module, args: tuple, output):
        if isinstance(output, torch.Tensor):
            return changed_output(module, args, output)
        output.last_hidden_state = torch.tanh(output.last_hidden_state)
        return output

    found = []
    for model in pair:
        model.get_submodule(name).register_forward_hook(changed)
        found.append(translations(model, batch))
    assert set(differ(found[1], base)) >= {"beam", "gnmt"}, "the hook changes nothing"
    assert_same_translations(*found)


@pytest.mark.parametrize("name", ["", "model", "lm_head"])
def test_a_hook_that_forbids_a_token_is_obeyed_by_all_searches(pair, name):
    """On the whole model, on what is inside it, and on the output layer; for "model" it cuts the hidden states."""
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))
    forbidden = base["greedy"][0][:, 1].tolist()

    def forbid(module: nn.Module, args: tuple, output):
        if isinstance(output, torch.Tensor):
            output = output.clone()
            output[..., forbidden] = -1e4
            return output
        if "logits" in output:
            output.logits[..., forbidden] = -1e4
        else:
            output.last_hidden_state = -output.last_hidden_state
        return output

    found = []
    for model in pair:
        (model.get_submodule(name) if name else model).register_forward_hook(forbid)
        found.append(translations(model, batch))
    assert set(differ(found[1], base)) == set(base)
    assert_same_translations(*found)
    if name != "model":
        for search, (ids, _) in found[0].items():
            assert not torch.isin(ids, torch.tensor(forbidden)).any(), search


@pytest.mark.parametrize("name", ["lm_head", "model.decoder.layers.0.fc1", "model.decoder"])
def test_a_forward_pre_hook_is_obeyed_by_all_searches(pair, name):
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))

    def halve(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0] * 0.5, *args[1:]), kwargs
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"] * 0.5}

    found = []
    for model in pair:
        model.get_submodule(name).register_forward_pre_hook(halve, with_kwargs=True)
        found.append(translations(model, batch))
    assert set(differ(found[1], base)) >= {"beam", "gnmt"}
    assert_same_translations(*found)


def test_a_hook_for_all_modules_is_obeyed_by_all_searches(pair):
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))

    def changed(module: nn.Module, args: tuple, output):
        return changed_output(module, args, output) if isinstance(module, nn.Linear) else None

    handle = torch.nn.modules.module.register_module_forward_hook(changed)
    try:
        found = [translations(model, batch) for model in pair]
    finally:
        handle.remove()
    assert set(differ(found[1], base)) >= {"beam", "gnmt"}
    assert_same_translations(*found)


@pytest.mark.parametrize("name", SOME_PLACES)
def test_hooks_are_called_as_often_and_with_the_same_shapes_in_a_beam_search(pair, name):
    shapes = []
    for model in pair:
        kept = Kept()
        model.get_submodule(name).register_forward_hook(kept)
        model.generate(**{k: v for k, v in make_batch(3).items() if "decoder" not in k}, num_beams=3, max_new_tokens=4)
        shapes.append([tuple(y.shape) for _, y in kept.calls])
    assert shapes[0] == shapes[1]


@with_dropout
@pytest.mark.parametrize("with_labels", [False, True], ids=["logits", "labels"])
@pytest.mark.parametrize("name", SOME_PLACES)
def test_a_full_backward_hook_works_in_training(name, dropout, with_labels):
    batch = make_batch(3)
    labels = make_labels(batch)
    grads = []
    pair = make_pair(dropout=dropout)
    for model in pair:
        model.train().get_submodule(name).register_full_backward_hook(lambda m, into, out: grads.append((into, out)))
        outputs = model(**batch, labels=labels)
        (outputs.loss if with_labels else loss_from_logits(outputs.logits, labels)).backward()
    assert len(grads) == 2
    if dropout == 0:
        for found, expected in zip(*grads, strict=True):
            torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", SOME_PLACES)
def test_a_module_in_anothers_place_is_trained_and_decoded_as_in_marian(pair, name):
    batch = make_batch(3)
    labels = make_labels(batch)
    losses, trained, found = [], [], []
    for model in pair:
        replace(model, name, Scaled)
        losses.append(train(model, batch, labels, learning_rate=0.05))
        trained.append(trainable_of(model))
        found.append(translations(model, batch))
    assert losses[1][-1] < losses[1][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert f"{name}.scale" in trained[0] and float(trained[0][f"{name}.scale"]) != pytest.approx(0.7, abs=1e-4)
    assert_same_parameters(trained[0], {k: v for k, v in trained[1].items() if "embed_positions" not in k})
    assert_same_translations(*found)


@pytest.mark.parametrize("name", SOME_PLACES)
def test_a_forward_put_on_an_instance_is_obeyed_by_all_searches_and_in_training(pair, name):
    """As accelerate, bitsandbytes' dispatch and many notebooks do."""
    batch, base = make_batch(3), translations(pair.marian, make_batch(3))
    labels = make_labels(batch)
    losses, found = [], []
    for model in pair:
        module = model.get_submodule(name)
        module.forward = lambda x, original=module.forward: original(x) * 1.5 + 0.1
        losses.append(float(model.train()(**batch, labels=labels).loss.detach()))
        found.append(translations(model.eval(), batch))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert set(differ(found[1], base)) >= {"beam", "gnmt"}
    assert_same_translations(*found)


def test_training_gives_logits_and_the_gradients_of_a_loss_made_from_them(pair, batch, labels):
    """Distillation, custom losses and per-sample gradients start from the logits."""
    gradients = []
    for model in pair:
        outputs = model.train()(**batch, labels=labels)
        assert outputs.logits is not None
        loss_from_logits(outputs.logits, labels).backward()
        gradients.append(gradients_of(model))
    expected = {name: grad for name, grad in gradients[1].items() if "embed_positions" not in name}
    assert_same_parameters(gradients[0], expected)


def test_each_stack_lists_its_own_embedding_which_is_called_for_its_own_input_only(pair):
    batch = make_batch(3)
    for model in pair:
        assert set(EMBEDDINGS) <= {name for name, _ in model.named_modules()}
        kept = {stack: Kept() for stack in STACKS}
        for stack, hook in kept.items():
            stack_of(model, stack).embed_tokens.register_forward_hook(hook)
        model(**batch)
        assert [len(kept[stack].calls) for stack in STACKS] == [1, 1]
        assert torch.equal(kept["encoder"].calls[0][0], batch["input_ids"])
        assert torch.equal(kept["decoder"].calls[0][0], batch["decoder_input_ids"])
