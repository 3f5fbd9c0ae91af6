"""Attention weights with their tokens, and what the pictures of them show."""

import copy
import dataclasses
import functools
import logging
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_model, wordy_model

from vanilla_transformer import gnmt_beam_search
from vanilla_transformer.data.tokenization import subword_nmt_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.translate import translate
from vanilla_transformer.plots.attention import (
    MOST_LABELS,
    AttentionMaps,
    attention_maps,
    plot_attention,
    token_labels,
)
from vanilla_transformer.plots.figures import replace_picture, save_figure
from vanilla_transformer.plots.positions import plot_positions

SOURCE, TARGET = "two dogs run on the green grass", "zwei Hunde rennen auf dem grünen Gras"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SOURCE, TARGET, "costs $5 or $$6", "две собаки", "二匹の犬"] * 2, 300)


@pytest.fixture
def model(tokenizer):
    # Numbers of layers and heads all differ, so that none can stand in for another.
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 4}
    return wordy_model(tokenizer, dropout=0.5, **sizes)


def some_maps(source_length: int, target_length: int) -> AttentionMaps:
    """Two layers and three heads of random weights."""

    def weights(queries: int, keys: int) -> torch.Tensor:
        return torch.rand(2, 3, queries, keys).softmax(-1)

    sides = ("source", source_length), ("target", target_length)
    return AttentionMaps(
        *(tuple(f"{name}{i}" for i in range(length)) for name, length in sides),
        encoder=weights(source_length, source_length),
        decoder=weights(target_length, target_length),
        cross=weights(target_length, source_length),
    )


# Weights


@torch.no_grad()
def test_weights_are_those_of_a_forward_pass(model, tokenizer):
    maps = attention_maps(model, tokenizer, SOURCE, TARGET)
    source, target = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (SOURCE, TARGET))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    decoder_input_ids = torch.cat([torch.tensor([[0]]), target[:, :-1]], dim=1)
    outputs = eager(source, decoder_input_ids=decoder_input_ids, output_attentions=True)
    n, m = source.shape[1], target.shape[1]
    shapes = {"encoder": (2, 2, n, n), "decoder": (3, 4, m, m), "cross": (3, 4, m, n)}
    for kind, expected in (
        ("encoder", outputs.encoder_attentions),
        ("decoder", outputs.decoder_attentions),
        ("cross", outputs.cross_attentions),
    ):
        weights = getattr(maps, kind)
        assert weights.shape == shapes[kind] and weights.dtype == torch.float32
        assert torch.equal(weights, torch.cat(expected))
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    assert not maps.decoder.triu(1).any() and maps.encoder.triu(1).any()
    assert (len(maps.source_tokens), len(maps.target_tokens)) == (n, m)


@pytest.mark.parametrize("own", [{}, {"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_without_a_target_it_is_the_models_own_translation(model, tokenizer, own):
    model.generation_config.update(max_new_tokens=12, **own)
    maps = attention_maps(model, tokenizer, SOURCE)
    settings = {"length_penalty": 0.0 if own.get("num_beams") == 1 else 0.6, "num_beams": 4, **own}
    source = torch.tensor([tokenizer(SOURCE)["input_ids"]])
    written = model.generate(source, custom_generate=gnmt_beam_search, **settings)[0]
    assert maps.target_tokens == token_labels(tokenizer, written[:-1].tolist())  # the last is never read
    assert maps.cross.shape[2] == 12
    (translation,) = next(translate(model, tokenizer, [SOURCE]))
    assert tokenizer.decode(written, skip_special_tokens=True) == translation.text


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, tokenizer, monkeypatch, implementation, training):
    expected = attention_maps(model, tokenizer, SOURCE, TARGET)
    model.set_attn_implementation(implementation)
    model.train(training)
    maps = attention_maps(model, tokenizer, SOURCE, TARGET)  # dropout is 0.5, which must not touch the weights
    assert torch.equal(maps.cross, expected.cross)
    assert (model.config._attn_implementation, model.training) == (implementation, training)

    def fail(*args, **kwargs):
        assert model.config._attn_implementation == implementation and not model.training
        raise MemoryError

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(MemoryError):
        attention_maps(model, tokenizer, SOURCE, TARGET)
    assert (model.config._attn_implementation, model.training) == (implementation, training)


def test_weights_of_a_model_in_bfloat16(model, tokenizer):
    maps = attention_maps(model.bfloat16(), tokenizer, SOURCE)
    assert maps.cross.dtype == torch.float32
    assert torch.allclose(maps.cross.sum(-1), torch.ones(()), atol=0.02)


@pytest.mark.parametrize("texts", [("",), (" \t",), (SOURCE, ""), (SOURCE, "\u3000")], ids=str)
def test_a_blank_text_is_refused(model, tokenizer, texts):
    with pytest.raises(UserError, match=f"the {('source', 'target')[len(texts) - 1]} is blank"):
        attention_maps(model, tokenizer, *texts)


@pytest.mark.parametrize("texts", [([SOURCE],), (None,), (SOURCE, [TARGET])], ids=str)
def test_a_batch_is_refused(model, tokenizer, texts):
    with pytest.raises(TypeError, match=f"one {('source', 'target')[len(texts) - 1]}, a string; this is a"):
        attention_maps(model, tokenizer, *texts)


# Labels


TEXTS = [SOURCE, TARGET, "  two  spaces ", "$5 $$6", "две собаки 二匹の犬 שני a\ufffdb"]


@pytest.mark.parametrize("text", TEXTS)
def test_labels_join_to_the_text(text):
    tokenizer = train_tokenizer(TEXTS * 2, 500)
    labels = token_labels(tokenizer, tokenizer(text)["input_ids"])
    assert len(labels) < len(text) + 1
    assert "".join(labels) == text.replace(" ", "\u2423") + "</s>"


def test_what_cannot_be_seen_is_escaped(tokenizer):
    def labels(text: str) -> list[str]:
        return [*token_labels(tokenizer, tokenizer(text)["input_ids"])][:-1]

    assert labels("\n\t") == ["\\n", "\\t"]
    assert labels("\x07") == ["\\x07"]
    assert labels("é") == ["\\xc3", "\\xa9"]
    assert labels("\u200b") == ["\\xe2", "\\x80", "\\x8b"]  # no character as long as it is in pieces
    assert token_labels(tokenizer, [0, 1, 2, 3]) == ("<s>", "<pad>", "</s>", "<unk>")
    whole = train_tokenizer(["\u200b"] * 4, 300)
    assert token_labels(whole, whole("\u200b")["input_ids"]) == ("\\u200b", "</s>")
    begun = train_tokenizer([" а б в г д е"] * 2, 261)  # the one merge is of a space and the first byte of a letter
    assert token_labels(begun, begun(" а")["input_ids"]) == ("\u2423\\xd0", "\\xb0", "</s>")


def test_labels_of_a_tokenizer_that_is_not_byte_level():
    tokenizer = subword_nmt_tokenizer(["e l", "el l", "o </w>"], ["hello \ufffd"])
    assert token_labels(tokenizer, tokenizer("hello \ufffd")["input_ids"]) == ("h", "ell", "o", "\ufffd", "</s>")


# Pictures

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("encoder", "source", "source"), ("decoder", "target", "target"), ("cross", "target", "source")],
)
def test_a_picture_shows_all_weights_with_their_tokens(kind, rows, columns):
    maps = some_maps(5, 4)
    figure = plot_attention(maps, kind)
    weights = getattr(maps, kind).numpy()
    tokens = {"source": list(maps.source_tokens), "target": list(maps.target_tokens)}
    *axes, bar = figure.axes
    assert len(axes) == 2 * 3
    for index, axis in enumerate(axes):
        layer, head = divmod(index, 3)
        (image,) = axis.images
        drawn = image.get_array()
        seen = ~np.triu(np.ones(drawn.shape, bool), 1) if kind == "decoder" else np.ones(drawn.shape, bool)
        assert np.array_equal(drawn[seen], weights[layer, head][seen])
        assert np.ma.getmaskarray(drawn)[~seen].all() and not np.ma.getmaskarray(drawn)[seen].any()
        assert image.get_clim() == (0, 1)
        assert axis.get_title() == (f"head {head + 1}" if layer == 0 else "")
        assert axis.get_ylabel() == (f"layer {layer + 1}" if head == 0 else "")
        assert [label.get_text() for label in axis.get_yticklabels()] == (tokens[rows] if head == 0 else [])
        assert [label.get_text() for label in axis.get_xticklabels()] == (tokens[columns] if layer == 1 else [])
    assert bar.get_ylabel() == "attention weight"
    assert f"{rows} (rows) to {columns} (columns)" in figure.get_suptitle()
    assert ("Grey" in figure.get_supxlabel()) == (kind == "decoder")


@pytest.mark.parametrize(
    ("source_length", "target_length", "prefix"),
    [(1, 1, ""), (6, 20, "a token of very many letters, "), (MOST_LABELS, 30, "")],
)
def test_no_text_overlaps_another_or_leaves_the_picture(source_length, target_length, prefix):
    maps = some_maps(source_length, target_length)
    longer = {
        name: tuple(prefix + token for token in getattr(maps, name)) for name in ("source_tokens", "target_tokens")
    }
    figure = plot_attention(dataclasses.replace(maps, **longer), "cross")
    figure.draw_without_rendering()
    axes = figure.axes[:-1]
    groups = [[label for label in axis.get_yticklabels()] for axis in axes[::3]]
    groups += [[label for label in axis.get_xticklabels()] for axis in axes[-3:]]
    groups += [[axis.title for axis in axes[:3]], [axis.yaxis.label for axis in axes[::3]]]
    groups += [[figure._suptitle, axes[0].title], [figure._supxlabel, axes[-3].get_xticklabels()[0]]]
    groups += [[axes[0].yaxis.label, axes[0].get_yticklabels()[0]]]
    for group in groups:
        boxes = [text.get_window_extent() for text in group]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :]), group[i]
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, group[i]
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, group[i]


def test_a_long_side_has_positions_and_says_so():
    figure = plot_attention(some_maps(MOST_LABELS + 1, 5), "cross")
    assert "41 columns are too many to label: the numbers are positions." in figure.get_supxlabel()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:2] == ["target0", "target1"]
    assert "source0" not in [label.get_text() for label in figure.axes[3].get_xticklabels()]
    figure = plot_attention(some_maps(501, 5), "encoder")
    notes = figure.get_supxlabel().replace("\n", " ")
    assert "501 rows and 501 columns are too many to label" in notes and "neighbours are drawn as one" in notes
    many_heads = dataclasses.replace(some_maps(20, 20), cross=torch.rand(1, 16, 20, 20))
    figure = plot_attention(many_heads, "cross")
    assert "20 columns are too many" in figure.get_supxlabel() and "rows are too" not in figure.get_supxlabel()
    assert max(figure.get_size_inches()) < 35


def test_a_kind_that_is_not_there():
    with pytest.raises(UserError, match="no kind of attention 'both'; there are encoder, decoder, cross"):
        plot_attention(some_maps(2, 2), "both")


def labelled(*tokens: str) -> AttentionMaps:
    return AttentionMaps(tokens, tokens, *[torch.eye(len(tokens))[None, None]] * 3)


def tick_labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def save(figure, path: Path) -> None:
    """With a warning of matplotlib's, such as that of a missing glyph, as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, str(path))


def test_characters_that_no_font_has_are_named_once(tmp_path, caplog, monkeypatch):
    from matplotlib.font_manager import fontManager

    own = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    with caplog.at_level(logging.WARNING):
        figure = plot_attention(labelled("犬", "␣две", "犬が", "שני", "$", r"$\frac$"), "encoder")
        save(figure, tmp_path / "a.png")
    assert tick_labels(figure) == ["□", "␣две", "□□", "שני", "$", r"$\frac$"]
    (record,) = caplog.records
    assert record.getMessage().startswith("no installed font has が犬, drawn as □;")


def test_an_installed_font_draws_what_matplotlibs_own_cannot(tmp_path, caplog, monkeypatch):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    for move, point in (("moveTo", (0, 0)), ("lineTo", (0, 500)), ("lineTo", (500, 0))):
        getattr(pen, move)(point)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "dog"])
    builder.setupCharacterMap({ord("犬"): "dog"})
    builder.setupGlyf({".notdef": glyph, "dog": glyph})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "dog": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Dogs Only", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "dogs.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])
    fontManager.addfont(tmp_path / "dogs.ttf")
    fontManager.ttflist.append(
        dataclasses.replace(fontManager.ttflist[-1], name="Noto Sans Broken", fname=str(tmp_path / "broken.ttf"))
    )
    with caplog.at_level(logging.WARNING):
        figure = plot_attention(labelled("犬", "␣dog"), "cross")
        save(figure, tmp_path / "a.png")
    assert tick_labels(figure) == ["犬", "␣dog"] and not caplog.records
    assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Dogs Only"]


@pytest.mark.parametrize(("length", "d_model", "convention"), [(1, 2, "paper"), (7, 16, "paper"), (7, 16, "fairseq")])
def test_the_picture_of_the_positions(length, d_model, convention):
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    model = small_model(d_model=d_model, position_convention=convention, **heads)
    figure = plot_positions(model, length)
    sines, cosines = (axis.images[0] for axis in figure.axes[:2])
    first, width = (0, d_model) if convention == "paper" else (2, d_model - 2)
    angles = (first + np.arange(length))[:, None] * 10_000.0 ** -(np.arange(0, d_model, 2) / width)
    assert np.allclose(sines.get_array(), np.sin(angles), atol=1e-5)
    assert np.allclose(cosines.get_array(), np.cos(angles), atol=1e-5)
    assert sines.get_clim() == cosines.get_clim() == (-1, 1)
    # Centred on the columns are the dimensions 0, 2, ... and 1, 3, ..., on the rows the positions.
    assert sines.get_extent() == [-1, d_model - 1, length - 0.5, -0.5]
    assert cosines.get_extent() == [0, d_model, length - 0.5, -0.5]
    assert ("pos+2" in figure.axes[0].get_title()) == ("(d-2)" in figure.axes[1].get_title()) == (first == 2)
    figure.draw_without_rendering()  # the formulas can be read
    with pytest.raises(UserError, match="positions is 0"):
        plot_positions(model, 0)


# Files


def test_a_figure_is_saved_once_as_what_its_ending_says(tmp_path):
    figure = plot_attention(some_maps(4, 3), "cross")
    for name, begins in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.SVG", b"<?xml")):
        save(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    header = (tmp_path / "a.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:])
    assert width > 1000 and height > 600
    with pytest.raises(UserError, match="exists already"):
        save_figure(figure, str(tmp_path / "a.pdf"))
    for name in ("a.jpg", "a"):
        with pytest.raises(UserError, match=r"must end in one of \.png, \.pdf, \.svg"):
            save_figure(figure, str(tmp_path / name))
        assert not (tmp_path / name).exists()
    with pytest.raises(UserError, match="No such file"):
        save_figure(figure, str(tmp_path / "no" / "a.png"))


def test_a_picture_is_replaced_by_a_whole_one_or_stays(tmp_path, monkeypatch):
    figure, path = plot_attention(some_maps(4, 3), "cross"), tmp_path / "a.png"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="can't write the picture .*: No space left on device"):
            replace_picture(figure, path)
    assert path.read_bytes() == b"old"
    replace_picture(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_the_weights_remain_and_a_picture_names_what_to_install(model, tokenizer, monkeypatch):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    maps = attention_maps(model, tokenizer, SOURCE)
    for plot in (lambda: plot_attention(maps, "cross"), lambda: plot_positions(model, 10)):
        with pytest.raises(UserError, match=r"matplotlib is not installed.*vanilla-transformer\[plots\]"):
            plot()


@pytest.fixture
def run(run_script, model, tokenizer, tmp_path):
    """Run the script with a saved model."""
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return functools.partial(run_script, "plot_attention", "--model_name_or_path", tmp_path / "model")


def test_the_script_draws_a_sentence_or_positions(run, tmp_path):
    for number, arguments in enumerate(
        [[SOURCE], ["--kind", "decoder", "--target", TARGET, "--", SOURCE], ["--positions", "20"]]
    ):
        path = tmp_path / f"{number}.png"
        assert run("--output_file", str(path), *arguments) == (0, f"The picture is in {path}\n", "")
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    before = path.read_bytes()
    code, out, err = run("--output_file", str(path), SOURCE)
    assert (code, out) == (2, "") and "exists already" in err and path.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [[], [SOURCE, "--positions", "5"], ["--positions", "5", "--target", TARGET], ["--target", TARGET]],
    ids=str,
)
def test_the_script_wants_either_a_sentence_or_positions(run, tmp_path, arguments):
    code, out, err = run("--output_file", str(tmp_path / "a.png"), *arguments)
    assert (code, out) == (2, "")
    assert err == "error: give either a sentence, and perhaps its --target, or --positions\n"


def test_the_source_is_read_as_translate_reads_it():
    tokenizer = train_tokenizer(["caf\u00e9 noir", "na\u00efve"] * 2, 280)
    model = wordy_model(tokenizer)
    composed = attention_maps(model, tokenizer, "caf\u00e9 noir")
    decomposed = attention_maps(model, tokenizer, unicodedata.normalize("NFD", "caf\u00e9 noir"))
    assert composed.source_tokens == decomposed.source_tokens and torch.equal(composed.cross, decomposed.cross)
    tokenizer.add_tokens([">>de<<"])
    with pytest.raises(UserError, match="a source begins with >>xx<<, but the model knows >>de<<"):
        attention_maps(model, tokenizer, ">>xx<< noir")
