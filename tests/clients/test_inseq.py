"""inseq attributes each word of a translation to the words of the source and to those before it."""

import warnings

import inseq
import pytest
import torch
from pairs import make_batch, make_pair, make_tokenizer

TOKENIZER = make_tokenizer()
METHODS = ["integrated_gradients", "input_x_gradient", "attention", "occlusion"]
SOURCES = ["37 20 4 25 17", "38 21 24"]
TARGETS = ["44 42 11 55", "22 9"]


def attribute(model, method: str, sources: list[str], targets: list[str] | None, **arguments):
    """Return inseq's result for each pair of sentences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_attn_implementation("eager")
        return inseq.load_model(model, method, tokenizer=TOKENIZER).attribute(
            sources,
            targets,
            attribute_target=True,
            step_scores=[] if method == "attention" else ["probability"],  # attention knows no steps
            show_progress=False,
            pretty_progress=False,
            **arguments,
        )


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("source", "target"), zip(SOURCES, TARGETS, strict=True))
def test_the_probabilities_of_a_given_target_are_those_of_the_model(scaled, source, target):
    """Also with embeddings times sqrt(d_model): inseq must not scale what it passes as `inputs_embeds` again.

    With tied embeddings: of the target, too, inseq takes the rows of `get_input_embeddings()`, which is the source's.
    """
    model = make_pair(tie_word_embeddings=True, scale_embedding=scaled).ours
    (found,) = attribute(model, "input_x_gradient", [source], [target]).sequence_attributions
    inputs = TOKENIZER(source, return_tensors="pt")
    labels = TOKENIZER(target, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], labels=labels).logits
    expected = logits.softmax(-1).gather(2, labels[..., None]).flatten()
    torch.testing.assert_close(found.step_scores["probability"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 2])
def test_attributions_are_those_of_marian(tied, method, rows):
    """Without scaled embeddings: with them inseq scales twice what MarianMT's decoder takes as `inputs_embeds`."""
    results = []
    for model in make_pair(tie_word_embeddings=tied, scale_embedding=False):
        arguments = {"n_steps": 20} if method == "integrated_gradients" else {}
        results.append(attribute(model, method, SOURCES[:rows], TARGETS[:rows], **arguments).sequence_attributions)
    assert len(results[0]) == rows
    for ours, marian in zip(*results, strict=True):
        for name in ("source_attributions", "target_attributions"):
            found, expected = getattr(ours, name), getattr(marian, name)
            if expected is None:
                assert found is None
                continue
            assert expected.nan_to_num().abs().sum() > 0
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_translation_that_inseq_generates_is_that_of_the_model(pair):
    source = make_batch(1)["input_ids"]
    text = TOKENIZER.decode(source[0], skip_special_tokens=True)
    inputs = TOKENIZER(text, return_tensors="pt")
    expected = pair.ours.generate(**inputs, max_new_tokens=6, num_beams=2)
    result = attribute(
        pair.ours, "input_x_gradient", [text], None, generation_args={"max_new_tokens": 6, "num_beams": 2}
    )
    found = [token.id for token in result.sequence_attributions[0].target if token.id not in (0,)]
    assert found == expected[0, 1:].tolist()
