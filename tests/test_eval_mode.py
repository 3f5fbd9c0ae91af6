"""Eval mode for the time of a call: each module's own mode comes back, whatever other threads do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import wordy_model
from torch import nn
from transformers import pipeline

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.eval_mode_vanilla_transformer import eval_mode
from vanilla_transformer.inference.translate import translate

SENTENCES = ["a dog runs", "two dogs run on the green grass", "a cat", "the cat sleeps all day long"]


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_each_module_returns_to_its_own_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()
    before = modes(model)
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before == [True, True, True, False, True]


def test_the_modes_return_after_an_error():
    model = nn.Dropout()
    with pytest.raises(MemoryError), eval_mode(model):
        raise MemoryError
    assert model.training


def test_a_module_waits_for_the_last_of_those_that_use_it():
    shared = nn.Dropout()
    first, second = nn.Sequential(shared), nn.Sequential(shared)
    entered, leave = threading.Event(), threading.Event()

    def use_second() -> None:
        with eval_mode(second):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=use_second)
    with eval_mode(first):
        thread.start()
        entered.wait()
    assert first.training and not shared.training
    leave.set()
    thread.join()
    assert shared.training and second.training


@pytest.mark.parametrize("through", ["translate", "pipeline"])
def test_threads_translate_as_one_after_the_other(through):
    tokenizer = train_tokenizer(SENTENCES * 2, 280)
    model = wordy_model(tokenizer, dropout=0.5).train()
    model.model.encoder.eval()
    before = modes(model)
    if through == "translate":

        def run(sentence: str) -> str:
            return next(translate(model, tokenizer, [sentence], max_new_tokens=12))[0].text
    else:
        translator = pipeline("vanilla-translation", model=model, tokenizer=tokenizer, device="cpu")
        model.train()
        model.model.encoder.eval()

        def run(sentence: str) -> str:
            return translator(sentence, max_new_tokens=12)[0]["translation_text"]

    sentences = SENTENCES * 6
    expected = [run(sentence) for sentence in sentences]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(run, sentences)) == expected
    assert modes(model) == before
