"""Attention's masks, and positions."""

import math

import pytest
import torch
from helpers import PAD, SIZES, gradients, labels_of, padded, ragged_batch, random_ids, small_config, small_model

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.base_vanilla_transformer import count_positions
from vanilla_transformer.modeling_vanilla_transformer import sinusoidal_positions

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
eager_and_sdpa = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])


@pytest.fixture(params=["eager", "sdpa", "flex_attention"])
def attention(request):
    """Name of an attention implementation; flex runs without its compiler, which takes a minute on a CPU."""
    with torch.compiler.set_stance("force_eager" if request.param == "flex_attention" else "default"):
        yield request.param


# Attention and masks


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
@torch.no_grad()
def test_no_target_position_sees_the_future(attention, masks):
    model, batch = small_model(attention), ragged_batch()
    if not masks:
        batch = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    logits = model(**batch).logits
    for position in range(1, 7):
        changed = batch["decoder_input_ids"].clone()
        changed[:, position:] = random_ids(3, 7 - position)
        now = model(**(batch | {"decoder_input_ids": changed})).logits
        torch.testing.assert_close(now[:, :position], logits[:, :position], **CLOSE)
        assert not torch.allclose(now[0, position:], logits[0, position:], **CLOSE)


@pytest.mark.parametrize("masks", [True, False], ids=["mask", "no mask"])
@torch.no_grad()
def test_the_encoder_sees_both_ways(attention, masks):
    """SDPA's default is causal: without `is_causal` on the module an encoder without padding silently turns causal."""
    encoder, ids = small_model(attention).get_encoder(), random_ids(2, 6)
    mask = torch.ones_like(ids) if masks else None
    before = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    ids[:, -1] = (ids[:, -1] + 1) % SIZES["vocab_size"]
    after = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert not torch.isclose(before[:, 0], after[:, 0], **CLOSE).all(-1).any()


@torch.no_grad()
def test_every_target_position_sees_the_whole_source(attention):
    model, batch = small_model(attention), ragged_batch()
    batch = {name: batch[name][:1] for name in ("input_ids", "decoder_input_ids")}
    before = model(**batch).logits
    for position in range(9):
        changed = batch["input_ids"].clone()
        changed[:, position] = (changed[:, position] + 1) % SIZES["vocab_size"]
        after = model(input_ids=changed, decoder_input_ids=batch["decoder_input_ids"]).logits
        assert not torch.isclose(before, after, **CLOSE).all(-1).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 5])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(attention, side, extra):
    """Left padding shifts absolute positions, unless they follow the mask."""
    model = small_model(attention)
    sources, targets = [random_ids(n) for n in (9, 6, 2)], [random_ids(n) for n in (7, 4, 1)]
    input_ids, attention_mask = padded(sources, 9 + extra, side)
    decoder_input_ids, decoder_attention_mask = padded(targets, 7 + extra, side)
    together = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
    ).logits
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model(input_ids=source[None], decoder_input_ids=target[None]).logits[0]
        torch.testing.assert_close(together[row][decoder_attention_mask[row].bool()], alone, **CLOSE)


@torch.no_grad()
def test_what_is_in_the_padding_changes_nothing(attention):
    model, batch = small_model(attention), ragged_batch()
    before = model(**batch).logits
    kept = batch["decoder_attention_mask"].bool()
    for name in ("input_ids", "decoder_input_ids"):
        batch[name] = torch.where(batch[name] == PAD, random_ids(*batch[name].shape), batch[name])
    torch.testing.assert_close(model(**batch).logits[kept], before[kept], **CLOSE)


@torch.no_grad()
def test_an_all_masked_row_is_finite_and_poisons_no_other(attention):
    """A softmax over nothing is NaN, which a later product or mean spreads to the whole batch."""
    model, batch = small_model(attention), ragged_batch()
    before = model(**batch).logits
    batch["attention_mask"][1] = 0
    after = model(**batch).logits
    assert after.isfinite().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], **CLOSE)
    batch["decoder_attention_mask"][1] = 0
    after = model(**batch).logits
    assert after.isfinite().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], **CLOSE)


@eager_and_sdpa
def test_an_all_masked_row_gives_finite_gradients(attn_implementation):
    model, batch = small_model(attn_implementation).train(), ragged_batch()
    batch["attention_mask"][1] = 0
    model(**batch, labels=labels_of(batch["decoder_input_ids"])).loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@torch.no_grad()
def test_the_attention_implementation_can_be_changed():
    model, batch = small_model("eager"), ragged_batch()
    kept = batch["decoder_attention_mask"].bool()
    expected = model(**batch).logits[kept]
    with torch.compiler.set_stance("force_eager"):
        for attn_implementation in ("sdpa", "flex_attention", "eager"):
            model.set_attn_implementation(attn_implementation)
            assert model.model.decoder.layers[0].encoder_attn.config._attn_implementation == attn_implementation
            torch.testing.assert_close(model(**batch).logits[kept], expected, **CLOSE)


# Positions


@pytest.mark.parametrize("d_model", [2, 16, 512])
def test_positions_are_the_equations(d_model):
    """Interleaved sines and cosines (section 3.5), to what float32 angles allow at position 5,000."""
    positions = torch.arange(5000)
    angles = positions[:, None].double() / 10_000 ** (torch.arange(0, d_model, 2).double() / d_model)
    ours = sinusoidal_positions(positions, d_model)
    assert ours.dtype == torch.float32
    for part, expected in ((ours[:, 0::2], angles.sin()), (ours[:, 1::2], angles.cos())):
        torch.testing.assert_close(part[:500].double(), expected[:500], rtol=0, atol=5e-5)
        torch.testing.assert_close(part.double(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("d_model", [4, 16, 512])
def test_fairseq_positions_are_fairseqs_table(d_model):
    """Its formula, sines before cosines: log(10000) / (half - 1) between the exponents, the first position 2."""
    half = d_model // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(2, 1000, dtype=torch.float)[:, None] * frequencies
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    model = small_model(d_model=d_model, position_convention="fairseq", **sizes)
    states = first_states(model, 998)
    assert torch.equal(states[:, 0::2], angles.sin()) and torch.equal(states[:, 1::2], angles.cos())


def first_states(model: VanillaTransformerForConditionalGeneration, length: int, **kwargs) -> torch.Tensor:
    """What enters the first encoder layer for embeddings of zero: the positions, [length, d_model]."""
    inputs_embeds = torch.zeros(1, length, model.config.d_model, dtype=model.dtype)
    with torch.no_grad():
        outputs = model.get_encoder()(inputs_embeds=inputs_embeds, output_hidden_states=True, **kwargs)
    assert outputs.last_hidden_state.isfinite().all()
    return outputs.hidden_states[0][0]


def test_there_is_no_longest_sentence():
    model = small_model(encoder_layers=1)
    assert torch.equal(first_states(model, 5000), sinusoidal_positions(torch.arange(5000), model.config.d_model))


def test_left_padding_shifts_no_position():
    model = small_model()
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    expected = sinusoidal_positions(torch.arange(4), model.config.d_model)
    assert torch.equal(first_states(model, 7, attention_mask=mask)[3:], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_rounded_once_in_half_precision(dtype):
    """Angles computed in bfloat16 know no position above 256 apart."""
    model = small_model(dtype=dtype, encoder_layers=1)
    positions = sinusoidal_positions(torch.arange(2000), model.config.d_model)
    assert torch.equal(first_states(model, 2000), positions.to(dtype))
    ids = random_ids(1, 2000)
    states = model.get_encoder()(input_ids=ids, output_hidden_states=True).hidden_states[0]
    embedded = model.get_input_embeddings()(ids).float() * 4  # the root of d_model
    assert torch.equal(states, (embedded + positions).to(dtype))


def test_nothing_of_the_positions_is_saved(tmp_path):
    model = small_model()
    assert not list(model.buffers())
    assert not [name for name in model.state_dict() if "pos" in name]


def test_positions_are_right_after_meta_construction_and_loading(tmp_path):
    """Buffers that are not saved hold garbage after from_pretrained, or stay on the meta device."""
    model, batch = small_model(), ragged_batch()
    expected = model(**batch).logits
    with torch.device("meta"):
        empty = VanillaTransformerForConditionalGeneration(small_config())
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty.eval()(**batch).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = VanillaTransformerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, expected)
    assert torch.equal(first_states(loaded, 50), sinusoidal_positions(torch.arange(50), model.config.d_model))


@pytest.mark.parametrize("scaled", [True, False])
def test_embeddings_are_scaled_by_the_root_of_d_model(scaled):
    model, ids = small_model(scale_embedding=scaled), random_ids(1, 5)
    states = model.get_encoder()(input_ids=ids, output_hidden_states=True).hidden_states[0][0]
    embedded = (states - sinusoidal_positions(torch.arange(5), 16)) / (4 if scaled else 1)
    torch.testing.assert_close(embedded, model.get_input_embeddings()(ids)[0], **CLOSE)


def window(length: int, width: int, causal: bool) -> torch.Tensor:
    """Which keys a query sees that are less than `width` away, and with `causal` not after it: [length, length]."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance.abs() < width) & ((distance >= 0) | (not causal))


@pytest.mark.parametrize("kind", ["boolean", "additive", "bias", "one row"])
@torch.no_grad()
def test_a_mask_of_ones_own_shifts_no_position(kind):
    """A window hides keys at the beginning from later queries; that is no padding."""
    model = small_model("sdpa")
    places = torch.arange(6)
    for causal in (True, False):
        seen = window(6, 2, causal).expand(3, 1, 6, 6)
        mask = {
            "boolean": seen,
            "one row": seen[:1],
            "additive": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
            "bias": -0.5 * (places[:, None] - places).abs().expand(3, 2, 6, 6),
        }[kind]
        found = count_positions(torch.empty(3, 6, 16), mask, past_length=0)
        assert torch.equal(found.expand(3, 6), places.expand(3, 6))
    model.model.encoder(input_ids=random_ids(3, 6), attention_mask=seen)


def test_padding_on_the_left_of_a_mask_with_four_dimensions():
    """As generate() makes it for a static cache: eight keys, of which one query after another sees one more."""
    seen = torch.ones(8, 8, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    seen[1, :, :, :3] = False
    expected = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)):
        assert torch.equal(count_positions(torch.empty(2, 5, 4), mask[:, :, :5], 0), expected)
        for place in range(3, 5):  # before, the second row has nothing but padding
            found = count_positions(torch.empty(2, 1, 4), mask[:, :, place : place + 1], place)
            assert torch.equal(found[:, 0], expected[:, place])
