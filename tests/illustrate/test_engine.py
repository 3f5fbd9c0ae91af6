"""The page's model and search give what PyTorch and `gnmt_beam_search` give."""

import math
from typing import Any

import pytest
import torch
from helpers import random_ids, randomized, small_model
from torch.nn.utils.rnn import pad_sequence
from transformers.activations import ACT2FN

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    gnmt_beam_search,
)
from vanilla_transformer.data.numbers import number_pairs
from vanilla_transformer.illustrate.payload import ACTIVATIONS

CLOSE = {"rtol": 0, "atol": 1e-4}  # a tenth of what is promised
NEAR_TIE = 1e-4  # sums of log-probabilities that are this close may be in either order

VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "unscaled": {"scale_embedding": False},
    "fairseq": {"position_convention": "fairseq", "pad_token_id": 3},
    "gelu": {"activation_function": "gelu"},
    "wide": {"d_model": 30, "encoder_attention_heads": 1, "decoder_attention_heads": 5},
    "dropout": {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "use_cache": False},
}


@pytest.fixture(scope="module")
def trained(numbers_tokenizer) -> VanillaTransformerForConditionalGeneration:
    """A small model that has learned to write numbers in French, more or less."""
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=len(numbers_tokenizer), d_model=36, encoder_layers=1, decoder_layers=2, dropout=0.0,
        encoder_attention_heads=4, decoder_attention_heads=3, encoder_ffn_dim=64, decoder_ffn_dim=96,
    )  # fmt: skip
    model = VanillaTransformerForConditionalGeneration(config)
    pairs = number_pairs("en", "fr", "train", 1000)
    sources = [torch.tensor(ids) for ids in numbers_tokenizer(list(pairs["source"]))["input_ids"]]
    targets = [torch.tensor(ids) for ids in numbers_tokenizer(list(pairs["target"]))["input_ids"]]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(120):
        rows = slice(step * 32 % 1000, step * 32 % 1000 + 32)
        source = pad_sequence(sources[rows], batch_first=True, padding_value=config.pad_token_id)
        labels = pad_sequence(targets[rows], batch_first=True, padding_value=-100)
        loss = model(input_ids=source, attention_mask=(source != config.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2  # far below log(330), that of a model that knows nothing
    return model.eval()


def matrix(rows: list[list[float | None]]) -> torch.Tensor:
    """A matrix from JSON, which has null for minus infinity."""
    return torch.tensor([[-math.inf if x is None else float(x) for x in row] for row in rows])


def assert_close(found: list, expected: torch.Tensor) -> None:
    torch.testing.assert_close(matrix(found), expected, **CLOSE)


def test_every_intermediate_result_is_that_of_pytorch(run_engine, engine_model, trained) -> None:
    models = {name: small_model(attn_implementation="eager", **overrides) for name, overrides in VARIANTS.items()}
    trained.set_attn_implementation("eager")
    models["trained"] = trained
    jobs, pairs = [], {}
    for name, model in models.items():
        sizes = [(1, 1), (9, 4), (20, 20)]
        vocab_size = model.config.vocab_size
        pairs[name] = [[random_ids(n, vocab_size=vocab_size).tolist() for n in lengths] for lengths in sizes]
        given = [{"source": source, "target": target} for source, target in pairs[name]]
        jobs.append({"run": "forward", **engine_model(model), "pairs": given})
    for (name, model), results in zip(models.items(), run_engine(*jobs), strict=True):
        for (source, target), result in zip(pairs[name], results, strict=True):
            check_forward(model, source, target, result)


@torch.no_grad()
def check_forward(model: Any, source: list[int], target: list[int], result: dict[str, Any]) -> None:
    expected = model(
        input_ids=torch.tensor([source]),
        decoder_input_ids=torch.tensor([target]),
        output_attentions=True,
        output_hidden_states=True,
    )
    encoder, decoder = result["encoder"], result["decoder"]
    assert (encoder["ids"], decoder["ids"]) == (source, target)
    logits = expected.logits[0]
    assert_close(decoder["logits"], logits)
    assert_close(decoder["probabilities"], logits.softmax(-1))
    assert_close(result["step_log_probs"], logits.log_softmax(-1))
    assert_close([result["logits_of_last"]], logits[-1:])
    for trace, stack, states, attentions in (
        (encoder, model.model.encoder, expected.encoder_hidden_states, {"selfAttention": expected.encoder_attentions}),
        (
            decoder,
            model.model.decoder,
            expected.decoder_hidden_states,
            {"selfAttention": expected.decoder_attentions, "encoderAttention": expected.cross_attentions},
        ),
    ):
        ids = torch.tensor(trace["ids"])
        embedded = stack.embed_tokens(ids) * stack.embedding_scale
        assert_close(trace["embedding"]["embedded"], embedded)
        assert_close(trace["embedding"]["positions"], stack.positions(torch.arange(len(ids))))
        assert_close(trace["embedding"]["sum"], states[0][0])
        for i, layer in enumerate(trace["layers"]):
            assert_close(layer["residuals"][0]["before"], states[i][0])
            assert_close(layer["residuals"][-1]["normalized"], states[i + 1][0])
            for name, weights in attentions.items():
                check_attention(layer[name], weights[i][0], causal=trace is decoder and name == "selfAttention")
            check_sublayers(layer, stack.layers[i])
        assert_close(trace["output"], states[-1][0])


def check_attention(found: dict[str, Any], weights: torch.Tensor, causal: bool) -> None:
    """Each head's numbers follow from its queries, keys and values; its weights are those of the model."""
    assert len(found["heads"]) == len(weights)
    for name in ("query", "key", "value"):
        assert_close(found[name], torch.cat([matrix(head[name]) for head in found["heads"]], dim=1))
    assert_close(found["concatenated"], torch.cat([matrix(head["context"]) for head in found["heads"]], dim=1))
    for head, expected in zip(found["heads"], weights, strict=True):
        query, key, value = (matrix(head[name]) for name in ("query", "key", "value"))
        dots = query @ key.t()
        mask = torch.ones_like(dots).triu(1).bool() if causal else torch.zeros_like(dots).bool()
        assert_close(head["dots"], dots)
        assert_close(head["scaled"], (dots / query.shape[1] ** 0.5).masked_fill(mask, -math.inf))
        assert_close(head["unscaledWeights"], dots.masked_fill(mask, -math.inf).softmax(-1))
        assert_close(head["weights"], expected)
        assert_close(head["context"], expected @ value)


def check_sublayers(found: dict[str, Any], layer: torch.nn.Module) -> None:
    """The parts of a layer are the outputs of the module's parts."""
    attentions = [(found["selfAttention"], layer.self_attn)]
    norms = [layer.self_attn_layer_norm]
    if "encoderAttention" in found:
        attentions.append((found["encoderAttention"], layer.encoder_attn))
        norms.append(layer.encoder_attn_layer_norm)
    for (attention, module), step in zip(attentions, found["residuals"], strict=False):
        assert_close(attention["output"], module.out_proj(matrix(attention["concatenated"])))
        assert_close(step["subLayer"], matrix(attention["output"]))
    inner = matrix(found["feedForward"]["input"])
    assert_close(found["feedForward"]["hidden"], layer.activation(layer.fc1(inner)))
    assert_close(found["feedForward"]["output"], layer.fc2(matrix(found["feedForward"]["hidden"])))
    assert_close(found["residuals"][-1]["before"], inner)
    assert_close(found["residuals"][-1]["subLayer"], matrix(found["feedForward"]["output"]))
    for step, norm in zip(found["residuals"], [*norms, layer.final_layer_norm], strict=True):
        assert_close(step["sum"], matrix(step["before"]) + matrix(step["subLayer"]))
        assert_close(step["normalized"], norm(matrix(step["sum"])))


def test_activations_are_those_of_transformers(run_engine) -> None:
    values = torch.cat([torch.linspace(-12, 12, 481), torch.tensor([-1000.0, -1e-30, 1e-30, 1000.0])])
    (found,) = run_engine({"run": "activations", "values": values.tolist()})
    assert tuple(found) == ACTIVATIONS
    for name, results in found.items():
        torch.testing.assert_close(torch.tensor(results), ACT2FN[name](values), rtol=1e-5, atol=1e-6, msg=name)


# The search


def generate(model: Any, sources: list[list[int]], settings: dict[str, Any]) -> list[list[tuple[list[int], float]]]:
    """The tokens and the score of each result of `gnmt_beam_search`, for each source best first."""
    names = {"numBeams": "num_beams", "lengthPenalty": "length_penalty", "numReturnSequences": "num_return_sequences",
             "maxNewTokens": "max_new_tokens"}  # fmt: skip
    rows = [torch.tensor(ids) for ids in sources]
    lengths = torch.tensor([len(ids) for ids in sources])
    input_ids = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=(torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        custom_generate=gnmt_beam_search,
        return_dict_in_generate=True,
        **{names[name]: value for name, value in settings.items()},
    )
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    results = [
        (ids[1 : 1 + length], score)
        for ids, length, score in zip(output.sequences.tolist(), lengths, output.sequences_scores.tolist(), strict=True)
    ]
    per_source = settings["numReturnSequences"]
    return [results[start : start + per_source] for start in range(0, len(results), per_source)]


def check_search(found: dict[str, Any], expected: list[tuple[list[int], float]]) -> bool:
    """Compare the results of one search; returns whether they differ, for two numbers in it are nearly equal."""
    ids = [hypothesis["ids"] for hypothesis in found["hypotheses"]]
    if ids != [tokens for tokens, _ in expected]:
        assert found["nearest"] < NEAR_TIE, (found["hypotheses"], expected)
        return True
    for hypothesis, (tokens, score) in zip(found["hypotheses"], expected, strict=True):
        assert hypothesis["score"] == pytest.approx(score, abs=2e-5, rel=1e-5)
        assert hypothesis["length"] == len(tokens)
    return False


SETTINGS = [
    {"numBeams": 1, "lengthPenalty": 0.6, "numReturnSequences": 1},
    {"numBeams": 4, "lengthPenalty": 0.6, "numReturnSequences": 2},
]
MORE_SETTINGS = [
    {"numBeams": 2, "lengthPenalty": 0.0, "numReturnSequences": 2},
    {"numBeams": 4, "lengthPenalty": 3.0, "numReturnSequences": 4},
    {"numBeams": 3, "lengthPenalty": -0.7, "numReturnSequences": 1},
    {"numBeams": 5, "lengthPenalty": 0.6, "numReturnSequences": 3, "maxNewTokens": 6},
]


def test_search_gives_what_gnmt_beam_search_gives(run_engine, engine_model, numbers_tokenizer, trained) -> None:
    """For 200 numbers, with a model that is mostly sure; for some also with one that is never."""
    sentences = list(number_pairs("en", "fr", "test", 200)["source"])
    sources = numbers_tokenizer(sentences)["input_ids"]
    unsure = randomized(VanillaTransformerForConditionalGeneration(trained.config)).eval()
    short = [{"maxNewTokens": 12, **settings} for settings in SETTINGS + MORE_SETTINGS]
    plan = [(trained, sources, SETTINGS), (trained, sources[:40], MORE_SETTINGS), (unsure, sources[:20], short)]
    jobs = [
        {"run": "search", **engine_model(model), "sources": given, "settings": settings}
        for model, given, settings in plan
    ]
    near_ties = 0
    for (model, given, all_settings), results in zip(plan, run_engine(*jobs), strict=True):
        for settings, found in zip(all_settings, results, strict=True):
            expected = generate(model, given, settings)
            near_ties += sum(check_search(*pair) for pair in zip(found, expected, strict=True))
    assert near_ties < 5


LIMITS: list[dict[str, Any]] = [
    {"eos_token_id": [2, 7, 9]},
    {"eos_token_id": [2, *range(20, 61)]},  # most of the tokens: there are many candidates, and few go on
    {"eos_token_id": None},
    {"max_length": 5},
    {"max_new_tokens": 3},
    {"max_length": 9, "max_new_tokens": 4},
    {"max_new_tokens": 500},
    {"decoder_start_token_id": 8},
    {"decoder_start_token_id": None, "bos_token_id": 6},
]


def test_search_obeys_the_generation_config(run_engine, engine_model) -> None:
    models = [small_model(tie_word_embeddings=False) for _ in LIMITS]
    for model, limits in zip(models, LIMITS, strict=True):
        for name, value in limits.items():
            setattr(model.generation_config, name, value)
    sources = [[*random_ids(n).tolist(), 2] for n in (1, 4, 8)]
    jobs = [
        {"run": "search", **engine_model(model), "sources": sources, "settings": [SETTINGS[0], MORE_SETTINGS[1]]}
        for model in models
    ]
    for model, results in zip(models, run_engine(*jobs), strict=True):
        for settings, found in zip([SETTINGS[0], MORE_SETTINGS[1]], results, strict=True):
            expected = generate(model, sources, settings)
            assert not any(check_search(*pair) for pair in zip(found, expected, strict=True))


def test_search_records_the_tree(run_engine, engine_model, numbers_tokenizer, trained) -> None:
    """What went on, ended and was dropped at each step; paths in the tree are the hypotheses."""
    source = numbers_tokenizer("nine hundred and seventy-one")["input_ids"]
    beams = 3
    settings = {"numBeams": beams, "lengthPenalty": 0.6, "numReturnSequences": 2}
    job = {"run": "search", **engine_model(trained), "sources": [source], "settings": [settings]}
    found = run_engine(job)[0][0][0]
    nodes, steps = found["nodes"], found["steps"]
    assert [node["id"] for node in nodes] == list(range(len(nodes)))
    before = [nodes[0]]
    for length, step in enumerate(steps, start=1):
        candidates = [*step["alive"], *step["finished"], *step["dropped"]]
        assert {candidate["parent"] for candidate in candidates} <= {node["id"] for node in before}
        assert all(nodes[node["id"]] == node for node in step["alive"] + step["finished"])
        worst_kept = min(node["logProb"] for node in step["alive"])
        assert all(node["logProb"] <= worst_kept for node in step["dropped"] if node["token"] != 2)
        assert {node["token"] for node in step["finished"]} <= {2}
        for node in step["finished"]:
            assert node["score"] == pytest.approx(node["logProb"] / ((5 + length) / 6) ** 0.6, rel=1e-6)
        assert step["canImprove"] is (length < len(steps))
        before = step["alive"]
        if length > 1:
            assert len(step["alive"]) == beams
    for hypothesis in found["hypotheses"]:
        node, written = nodes[hypothesis["node"]], []
        while node["parent"] is not None:
            written.insert(0, node["token"])
            node = nodes[node["parent"]]
        assert written == hypothesis["ids"]
        assert node == nodes[0]
