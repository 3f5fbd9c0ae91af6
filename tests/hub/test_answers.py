"""Answers to the bit. That `verify` compares them across processes is in test_push.py."""

import itertools

import torch
from helpers import ragged_batch, small_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.hub.answers import base_answers, config_answers, model_answers, tokenizer_answers
from vanilla_transformer.hub.weights import tensor_digest


def test_tokenizers_answer_with_their_vocabulary_and_special_tokens():
    tokenizer = train_tokenizer(["one", "two"] * 2, 270)
    answers = [tokenizer_answers(tokenizer, ["one"])]
    tokenizer.bos_token = "</s>"
    answers.append(tokenizer_answers(tokenizer, ["one"]))
    tokenizer.add_tokens("zebra")
    answers.append(tokenizer_answers(tokenizer, ["one"]))
    changed = [{name for name in old if old[name] != new[name]} for old, new in itertools.pairwise(answers)]
    assert changed == [{"special tokens"}, {"vocabulary"}]


def test_models_answer_as_they_compute():
    model = small_model()
    ids = ragged_batch()["input_ids"][:1]
    with torch.no_grad():
        states = model.model(input_ids=ids, decoder_input_ids=ids).last_hidden_state
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        beam = model.generate(ids, num_beams=4)
    assert base_answers(model.model, ids[0].tolist()) == {"last hidden state": tensor_digest(states)}
    answers = model_answers(model, ids[0].tolist())
    assert (answers["logits"], answers["beam translation"]) == (tensor_digest(logits), beam[0].tolist())
    assert answers["generation config"]["pad_token_id"] == 1
    assert config_answers(model.config)["decoder_layers"] == 3
