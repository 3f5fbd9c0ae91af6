"""Logits and gradients against torch.nn.Transformer, MarianMT and the paper's equations in NumPy."""

import numpy as np
import pytest
import torch
from helpers import gradients, labels_of, ragged_batch, randomized, small_config, small_model
from torch import nn
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

from vanilla_transformer import VanillaTransformerForConditionalGeneration, modeling_vanilla_transformer

FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}
# Positions, and in eager attention the softmax, are computed in float32 even where the weights are float64.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def positions_of(length: int, d_model: int) -> np.ndarray:
    """Section 3.5 in float64, one number at a time: [length, d_model]."""
    table = np.empty((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos / 10000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


@pytest.fixture
def positions_in_float64(monkeypatch):
    """Leave the positions' rounding out of a comparison in float64."""

    def positions(position_ids: torch.Tensor, d_model: int, _: str) -> torch.Tensor:
        table = torch.from_numpy(positions_of(int(position_ids.max()) + 1, d_model))
        return table[position_ids]

    monkeypatch.setattr(modeling_vanilla_transformer, "sinusoidal_positions", positions)


class TorchTransformer(nn.Module):
    """torch.nn.Transformer with our weights, its two final norms removed, between the paper's embeddings."""

    def __init__(self, ours: VanillaTransformerForConditionalGeneration) -> None:
        super().__init__()
        config = ours.config
        self.config = config

        def sizes(heads: int, ffn_dim: int) -> dict:
            return {
                "d_model": config.d_model,
                "nhead": heads,
                "dim_feedforward": ffn_dim,
                "dropout": 0.0,
                "activation": "relu",
                "batch_first": True,
                "norm_first": False,
            }

        encoder_layer = nn.TransformerEncoderLayer(**sizes(config.encoder_attention_heads, config.encoder_ffn_dim))
        decoder_layer = nn.TransformerDecoderLayer(**sizes(config.decoder_attention_heads, config.decoder_ffn_dim))
        self.transformer = nn.Transformer(
            config.d_model,
            config.decoder_attention_heads,
            custom_encoder=nn.TransformerEncoder(
                encoder_layer, config.encoder_layers, norm=None, enable_nested_tensor=False
            ),
            custom_decoder=nn.TransformerDecoder(decoder_layer, config.decoder_layers, norm=None),
            batch_first=True,
        )
        weights = ours.state_dict()
        self.transformer.load_state_dict({name: join([weights[n] for n in names]) for name, names in self.names()})
        self.source = nn.Parameter(weights["model.encoder.embed_tokens.weight"].clone())
        self.target = nn.Parameter(weights["model.decoder.embed_tokens.weight"].clone())
        self.output = nn.Parameter(weights["lm_head.weight"].clone())
        self.double()

    def names(self) -> list[tuple[str, list[str]]]:
        """Each name of torch.nn.Transformer with the names of ours that it is made of."""
        rows = []
        for stack, layers in (("encoder", self.config.encoder_layers), ("decoder", self.config.decoder_layers)):
            norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
            attentions = {"self_attn": "self_attn"}
            if stack == "decoder":
                norms = {
                    "norm1": "self_attn_layer_norm",
                    "norm2": "encoder_attn_layer_norm",
                    "norm3": "final_layer_norm",
                }
                attentions["multihead_attn"] = "encoder_attn"
            for i in range(layers):
                theirs, ours = f"{stack}.layers.{i}", f"model.{stack}.layers.{i}"
                for kind in ("weight", "bias"):
                    for a, b in ({"linear1": "fc1", "linear2": "fc2"} | norms).items():
                        rows.append((f"{theirs}.{a}.{kind}", [f"{ours}.{b}.{kind}"]))
                    for a, b in attentions.items():
                        qkv = [f"{ours}.{b}.{letter}_proj.{kind}" for letter in "qkv"]
                        rows.append((f"{theirs}.{a}.in_proj_{kind}", qkv))
                        rows.append((f"{theirs}.{a}.out_proj.{kind}", [f"{ours}.{b}.out_proj.{kind}"]))
        return rows

    def embed(self, ids: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        positions = torch.from_numpy(positions_of(ids.shape[1], self.config.d_model))
        return F.embedding(ids, matrix) * self.config.d_model**0.5 + positions

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask) -> torch.Tensor:
        length = decoder_input_ids.shape[1]
        hidden = self.transformer(
            self.embed(input_ids, self.source),
            self.embed(decoder_input_ids, self.target),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            src_key_padding_mask=attention_mask == 0,
            memory_key_padding_mask=attention_mask == 0,
            tgt_key_padding_mask=decoder_attention_mask == 0,
        )
        return hidden @ self.output.T


def join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


@pytest.mark.parametrize("attn_implementation, tolerance", [("eager", FLOAT32), ("sdpa", FLOAT64)])
@pytest.mark.parametrize("tied", [True, False])
def test_torch_nn_transformer_gives_the_same_logits_and_gradients(
    tied, attn_implementation, tolerance, positions_in_float64
):
    ours = small_model(attn_implementation, dtype=torch.float64, tie_word_embeddings=tied).train()
    theirs = TorchTransformer(ours).train()
    batch = ragged_batch()
    kept = batch["decoder_attention_mask"].bool()

    logits = ours(**batch).logits
    expected = theirs(**batch)
    torch.testing.assert_close(logits[kept], expected[kept], **tolerance)

    weighting = torch.randn_like(logits) * kept[..., None]
    (logits * weighting).sum().backward()
    (expected * weighting).sum().backward()
    grads = gradients(ours)
    their_grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    pairs = [(names, their_grads[f"transformer.{name}"]) for name, names in theirs.names()]
    if tied:
        pairs.append((["model.shared.weight"], sum(their_grads[name] for name in ("source", "target", "output"))))
    else:
        pairs.append((["model.encoder.embed_tokens.weight"], their_grads["source"]))
        pairs.append((["model.decoder.embed_tokens.weight"], their_grads["target"]))
        pairs.append((["lm_head.weight"], their_grads["output"]))
    assert {name for names, _ in pairs for name in names} == set(grads)
    for names, expected_grad in pairs:
        torch.testing.assert_close(join([grads[name] for name in names]), expected_grad, **tolerance)


def marian_with_weights_of(ours: VanillaTransformerForConditionalGeneration) -> MarianMTModel:
    config = ours.config
    theirs = MarianMTModel(
        MarianConfig(
            **{field: value for field, value in config.to_dict().items() if hasattr(MarianConfig, field)}
            | {"max_position_embeddings": 32, "attn_implementation": "eager"}
        )
    ).double()
    theirs.load_state_dict({name: reordered(name, weight) for name, weight in ours.state_dict().items()}, strict=False)
    return theirs


def reordered(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight or its gradient for a residual stream whose positions are all sines, then all cosines."""
    d_model = small_config().d_model
    order = torch.cat([torch.arange(0, d_model, 2), torch.arange(1, d_model, 2)])
    reads = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight", "shared.weight", "lm_head.weight")
    if name.endswith(reads) or "embed_tokens" in name:
        return weight[:, order]
    writes = ("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias", "norm.weight", "norm.bias")
    return weight[order] if name.endswith(writes) else weight


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_marian_gives_the_same_logits_loss_and_gradients(attn_implementation):
    ours = small_model(attn_implementation, dtype=torch.float64).train()
    theirs = marian_with_weights_of(ours).train()
    batch = ragged_batch()
    labels = labels_of(batch.pop("decoder_input_ids"))

    output, expected = ours(**batch, labels=labels), theirs(**batch, labels=labels)
    logits = ours(**batch, labels=labels, return_logits=True).logits
    kept = labels != -100
    torch.testing.assert_close(logits[kept], expected.logits[kept], **FLOAT32)
    torch.testing.assert_close(output.loss, expected.loss, check_dtype=False, **FLOAT32)

    output.loss.backward()
    expected.loss.backward()
    grads = gradients(ours)
    theirs_by_name = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert set(theirs_by_name) == set(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(reordered(name, grad), theirs_by_name[name], **FLOAT32, msg=name)


class Equations:
    """The paper in NumPy, one sentence at a time, without padding: there is no mask to get wrong but the causal one."""

    def __init__(self, ours: VanillaTransformerForConditionalGeneration) -> None:
        self.config = ours.config
        self.weights = {name: weight.double().numpy() for name, weight in ours.state_dict().items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        normalized = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return normalized * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, heads: int, x: np.ndarray, memory: np.ndarray, causal: bool) -> np.ndarray:
        query, key, value = (
            self.linear(f"{name}.{letter}_proj", states)
            for letter, states in zip("qkv", (x, memory, memory), strict=True)
        )
        d_k = x.shape[-1] // heads
        outputs = []
        for head in range(heads):
            columns = slice(head * d_k, (head + 1) * d_k)
            scores = query[:, columns] @ key[:, columns].T / np.sqrt(d_k)
            if causal:
                scores[np.triu_indices(len(scores), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ value[:, columns])
        return self.linear(f"{name}.out_proj", np.concatenate(outputs, axis=-1))

    def feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.linear(f"{name}.fc2", np.maximum(0, self.linear(f"{name}.fc1", x)))

    def embed(self, stack: str, ids: np.ndarray) -> np.ndarray:
        matrix = self.weights[f"model.{stack}.embed_tokens.weight"]
        return matrix[ids] * np.sqrt(self.config.d_model) + positions_of(len(ids), self.config.d_model)

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        memory = self.embed("encoder", source)
        for i in range(self.config.encoder_layers):
            name, heads = f"model.encoder.layers.{i}", self.config.encoder_attention_heads
            attended = self.attention(f"{name}.self_attn", heads, memory, memory, causal=False)
            memory = self.layer_norm(f"{name}.self_attn_layer_norm", memory + attended)
            memory = self.layer_norm(f"{name}.final_layer_norm", memory + self.feed_forward(name, memory))
        x = self.embed("decoder", target)
        for i in range(self.config.decoder_layers):
            name, heads = f"model.decoder.layers.{i}", self.config.decoder_attention_heads
            attended = self.attention(f"{name}.self_attn", heads, x, x, causal=True)
            x = self.layer_norm(f"{name}.self_attn_layer_norm", x + attended)
            attended = self.attention(f"{name}.encoder_attn", heads, x, memory, causal=False)
            x = self.layer_norm(f"{name}.encoder_attn_layer_norm", x + attended)
            x = self.layer_norm(f"{name}.final_layer_norm", x + self.feed_forward(name, x))
        return x @ self.weights["lm_head.weight"].T


def without_padding(batch: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Source and target ids of each row."""
    sources = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    targets = zip(batch["decoder_input_ids"], batch["decoder_attention_mask"].bool(), strict=True)
    return [(source[s], target[t]) for (source, s), (target, t) in zip(sources, targets, strict=True)]


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_papers_equations_give_the_same_logits_with_and_without_padding(tied, attn_implementation):
    ours = small_model(attn_implementation, dtype=torch.float64, tie_word_embeddings=tied)
    equations = Equations(ours)
    batch = ragged_batch()
    with torch.no_grad():
        logits = ours(**batch).logits
    for row, (source, target) in enumerate(without_padding(batch)):
        expected = torch.from_numpy(equations(source.numpy(), target.numpy()))
        torch.testing.assert_close(logits[row, : len(target)], expected, **FLOAT32)
        with torch.no_grad():
            alone = ours(input_ids=source[None], decoder_input_ids=target[None]).logits[0]
        torch.testing.assert_close(alone, expected, **FLOAT32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_papers_equations_have_the_same_slope_in_each_parameter(tied, positions_in_float64):
    """Gradients against central differences of the NumPy forward, along a random direction in each tensor."""
    ours = small_model("sdpa", dtype=torch.float64, tie_word_embeddings=tied, encoder_layers=1, decoder_layers=1)
    equations = Equations(ours)
    batch = ragged_batch()
    weighting = torch.randn(*batch["decoder_input_ids"].shape, ours.config.vocab_size, dtype=torch.float64)
    weighting *= batch["decoder_attention_mask"][..., None]
    (ours(**batch).logits * weighting).sum().backward()

    def total() -> float:
        rows = [equations(source.numpy(), target.numpy()) for source, target in without_padding(batch)]
        return sum((row * weighting[i, : len(row)].numpy()).sum() for i, row in enumerate(rows))

    for name, parameter in ours.named_parameters():
        direction = torch.randn_like(parameter).numpy()
        step = 1e-6 * direction
        weight = equations.weights[name]  # tied names share this array's memory
        weight += step
        above = total()
        weight -= 2 * step
        below = total()
        weight += step
        slope = (parameter.grad.numpy() * direction).sum()
        assert slope == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-4), name


def test_a_layer_adds_before_it_normalizes():
    """Post-norm (section 3.1): each layer's output has the norm's mean and variance; pre-norm's has not."""
    ours = VanillaTransformerForConditionalGeneration(small_config()).eval()
    outputs = ours(**ragged_batch(), output_hidden_states=True)
    for states in (*outputs.encoder_hidden_states[1:], *outputs.decoder_hidden_states[1:]):
        torch.testing.assert_close(states.mean(-1), torch.zeros(states.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(states.var(-1, correction=0), torch.ones(states.shape[:-1]), atol=1e-3, rtol=0)


def test_dropout_is_where_the_paper_has_it(monkeypatch):
    """Section 5.4: on each sub-layer's output before it is added, and on embeddings plus positions; nowhere else."""
    rates = []

    def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        rates.append((p, training))
        return x

    ours = randomized(VanillaTransformerForConditionalGeneration(small_config(dropout=0.3))).train()
    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(modeling_vanilla_transformer, "dropout", dropout)
    ours.set_attn_implementation("eager")
    ours(**ragged_batch())
    layers = 2 * ours.config.encoder_layers + 3 * ours.config.decoder_layers
    assert [rate for rate in rates if rate[0] > 0] == [(0.3, True)] * (2 + layers)
