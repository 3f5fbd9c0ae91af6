"""Checkpoints of fairseq give its model's logits, those of OpenNMT-py are refused, and no code in them is run."""

import math
import os
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import FAIRSEQ_OPTIONS, FAIRSEQ_TYPES, PAD, fairseq_weights, write_fairseq_checkpoint
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.convert.fairseq import ACTIVATIONS, REFUSED_OPTIONS, convert_checkpoint, read_dictionary
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.translate import translate

EOS, VOCAB_SIZE, D_MODEL = 2, 32, 16
SOURCE = torch.tensor([[4, 9, 30, 17, 8, EOS], [PAD, PAD, PAD, 12, 25, EOS], [PAD, PAD, PAD, PAD, PAD, EOS]])
TARGET = torch.tensor([[EOS, 11, 12, 31], [EOS, 14, PAD, PAD], [EOS, PAD, PAD, PAD]])  # the decoder starts with </s>


# fairseq's model, written from the format's definition


def fairseq_logits(weights: dict[str, torch.Tensor], options: dict, source: torch.Tensor, target: torch.Tensor):
    """Logits [batch, target length, types]: post-norm, all sines before all cosines, the first position pad + 1."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def embed(stack: str, ids: torch.Tensor) -> torch.Tensor:
        half = D_MODEL // 2
        table = torch.zeros(50, D_MODEL)
        for position in range(50):
            for i in range(half):
                angle = position * math.exp(-math.log(10_000) * i / (half - 1))
                table[position, i], table[position, half + i] = math.sin(angle), math.cos(angle)
        table[PAD] = 0
        real = ids.ne(PAD).long()
        positions = real.cumsum(1) * real + PAD
        scale = 1 if options["no_scale_embedding"] else math.sqrt(D_MODEL)
        return F.embedding(ids, weights[f"{stack}.embed_tokens.weight"]) * scale + table[positions]

    def attention(name: str, x: torch.Tensor, memory: torch.Tensor, hidden: torch.Tensor, heads: int) -> torch.Tensor:
        size = D_MODEL // heads
        outputs = []
        query, key, value = (linear(f"{name}.{p}_proj", of) for p, of in (("q", x), ("k", memory), ("v", memory)))
        for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
            outputs.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ value[..., part])
        return linear(f"{name}.out_proj", torch.cat(outputs, -1))

    activation = {
        "relu": F.relu,
        "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "gelu_accurate": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "swish": lambda x: x * torch.sigmoid(x),
        "tanh": torch.tanh,
    }[options["activation_fn"].replace("gelu_fast", "gelu_accurate")]

    def feed_forward(layer: str, x: torch.Tensor) -> torch.Tensor:
        return norm(f"{layer}.final_layer_norm", x + linear(f"{layer}.fc2", activation(linear(f"{layer}.fc1", x))))

    padding = source.eq(PAD)[:, None]
    x = embed("encoder", source)
    for layer in (f"encoder.layers.{i}" for i in range(2)):
        attended = attention(f"{layer}.self_attn", x, x, padding, options["encoder_attention_heads"])
        x = feed_forward(layer, norm(f"{layer}.self_attn_layer_norm", x + attended))
    memory, x = x, embed("decoder", target)
    later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1) | target.eq(PAD)[:, None]
    for layer in (f"decoder.layers.{i}" for i in range(3)):
        attended = attention(f"{layer}.self_attn", x, x, later, options["decoder_attention_heads"])
        x = norm(f"{layer}.self_attn_layer_norm", x + attended)
        attended = attention(f"{layer}.encoder_attn", x, memory, padding, options["decoder_attention_heads"])
        x = feed_forward(layer, norm(f"{layer}.encoder_attn_layer_norm", x + attended))
    return x @ weights["decoder.output_projection.weight"].T


@torch.no_grad()
def our_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    masks = {"attention_mask": SOURCE.ne(PAD).long(), "decoder_attention_mask": TARGET.ne(PAD).long()}
    return model(input_ids=SOURCE, decoder_input_ids=TARGET, **masks).logits


def convert(folder: Path, name: str = "checkpoint_best.pt", output: str = "converted", dictionaries: int = 1) -> Path:
    convert_checkpoint(folder / name, [folder / "dict.en.txt"] * dictionaries, folder / output)
    return folder / output


def refusal(folder: Path) -> str:
    """Why checkpoint_best.pt is refused, in one sentence that names the file; nothing is written."""
    with pytest.raises(UserError) as error:
        convert(folder)
    assert not (folder / "converted").exists()
    assert "checkpoint_best.pt" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def checkpoint(tmp_path) -> dict:
    """The contents of a checkpoint, to change and to `save`."""
    return {"args": Namespace(**FAIRSEQ_OPTIONS), "model": write_fairseq_checkpoint(tmp_path)}


def save(contents: object, folder: Path, zipped: bool = True) -> None:
    torch.save(contents, folder / "checkpoint_best.pt", _use_new_zipfile_serialization=zipped)


# The same model


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"no_scale_embedding": True}, *({"activation_fn": name} for name in ACTIVATIONS if name != "relu")],
    ids=str,
)
def test_logits_are_those_of_fairseqs_model(shared, options, tmp_path):
    weights = write_fairseq_checkpoint(tmp_path, shared, **options)
    expected = fairseq_logits(weights, FAIRSEQ_OPTIONS | options, SOURCE, TARGET)
    kept = TARGET.ne(PAD)
    torch.testing.assert_close(
        our_logits(convert(tmp_path, dictionaries=1 if shared else 2))[kept], expected[kept], rtol=1e-5, atol=1e-5
    )


def test_the_config_says_what_was_converted(tmp_path):
    write_fairseq_checkpoint(tmp_path)
    model, _ = load(str(convert(tmp_path)))
    config = model.config
    assert (config.encoder_layers, config.decoder_layers, config.d_model, config.vocab_size) == (2, 3, 16, 32)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (2, 4)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (24, 40)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.3, 0.1, 0.2)
    assert (config.position_convention, config.tie_word_embeddings) == ("fairseq", True)
    assert model.generation_config.decoder_start_token_id == config.decoder_start_token_id == EOS
    assert (model.generation_config.num_beams, model.generation_config.length_penalty) == (4, 0.6)


def test_text_goes_in_and_out_as_with_fairseq(tmp_path):
    weights = write_fairseq_checkpoint(tmp_path)
    model, tokenizer = load(str(convert(tmp_path)))
    source = torch.tensor([[6, 5, 4, 3, EOS]])
    assert tokenizer("w2@@  w1@@ w0 never", return_tensors="pt")["input_ids"].tolist() == source.tolist()
    target = torch.tensor([[EOS]])
    for _ in range(12):  # greedy, from </s> on
        logits = fairseq_logits(weights, FAIRSEQ_OPTIONS, source, target)[:, -1]
        target = torch.cat([target, logits.argmax(-1, keepdim=True)], 1)
        if target[0, -1] == EOS:
            break
    words = [FAIRSEQ_TYPES[i - 4] for i in target[0].tolist() if i > 3]
    assert len(words) > 2
    expected = (" ".join(words) + " ").replace("@@ ", "").rstrip()
    ((found,),) = translate(model, tokenizer, ["w2@@ w1@@ w0 never"], num_beams=1, max_new_tokens=12)
    assert found.text == expected


# The same model as other versions write it


def in_old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As fairseq 0.6: queries, keys and values in one matrix, norms by number, no output_projection."""
    old = {}
    numbers = {"encoder": ["self_attn", "final"], "decoder": ["self_attn", "encoder_attn", "final"]}
    for name, weight in weights.items():
        stack, kind = name.split(".")[0], name.rsplit(".", 1)[-1]
        if "q_proj" in name:
            parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            old[name.replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(parts)
        elif name.split(".")[-2].endswith("_layer_norm"):
            norm = name.split(".")[-2]
            number = numbers[stack].index(norm.removesuffix("_layer_norm"))
            old[name.replace(norm, f"layer_norms.{number}")] = weight
        elif "k_proj" not in name and "v_proj" not in name and "output_projection" not in name:
            old[name] = weight
    return old | {"decoder.embed_positions.weights": torch.zeros(0)}


def with_copies(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fairseq 0.12 writes copies of the encoder's weights, as old as the last loading."""
    stale = {"in_proj_weight": (48, 16), "in_proj_bias": (48,), "fc1_weight": (24, 16), "out_proj_bias": (16,)}
    return weights | {
        f"encoder.layers.{i}.{name}": torch.zeros(shape) for i in range(2) for name, shape in stale.items()
    }


class Meter:
    """As in extra_state: an object of a class that is not there when the file is read."""

    def __init__(self) -> None:
        self.sum = 3


class DictConfig:
    """As omegaconf pickles one: its state is a dictionary, with nodes as the items of `_content`."""

    def __init__(self, content: dict) -> None:
        self._content = {
            name: value if type(value) is DictConfig else AnyNode(value) for name, value in content.items()
        }
        self._metadata = Meter()
        self._parent = None


class AnyNode:
    def __init__(self, value: object) -> None:
        self._val = value


class Field:
    """As torchtext's, in the vocabulary of OpenNMT-py 1 and 2."""

    def __init__(self) -> None:
        self.tokenize = "a b".split  # pickled as getattr("a b", "split")
        self.vocab = Meter()


def save_and_forget_classes(contents: object, folder: Path, zipped: bool, monkeypatch) -> None:
    """Save with the classes of other packages in a module that is gone afterwards."""
    module = types.ModuleType("another_package")
    for cls in (Meter, DictConfig, AnyNode, Field):
        monkeypatch.setattr(cls, "__module__", module.__name__)
        setattr(module, cls.__name__, cls)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        save(contents, folder, zipped)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("version", ["0.6", "0.9", "omegaconf", "0.12", "omegaconf in full"])
def test_each_version_of_the_format_gives_the_same_weights(version, zipped, checkpoint, tmp_path, monkeypatch):
    expected = convert(tmp_path, output="expected")
    args, weights = checkpoint.pop("args"), checkpoint["model"]
    cfg = {"_name": None, "model": args, "task": {"_name": "translation"}}
    contents = {
        "0.6": {"args": args, "model": in_old_names(weights)},
        "0.9": {"args": args, "model": weights, "extra_state": {"train_meters": {"train_loss": Meter()}}},
        "omegaconf": {"args": None, "cfg": DictConfig(cfg), "model": weights},
        "0.12": {"args": None, "cfg": cfg, "model": with_copies(weights)},
        "omegaconf in full": {"args": None, "cfg": DictConfig({"model": DictConfig(vars(args))}), "model": weights},
    }[version]
    save_and_forget_classes(contents, tmp_path, zipped, monkeypatch)
    converted = convert(tmp_path)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (converted / name).read_bytes() == (expected / name).read_bytes(), name


def test_an_output_layer_of_its_own_by_its_old_name(tmp_path):
    weights = write_fairseq_checkpoint(tmp_path, shared=False)
    weights["decoder.embed_out"] = weights.pop("decoder.output_projection.weight")
    options = FAIRSEQ_OPTIONS | {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
    save({"args": Namespace(**options), "model": weights}, tmp_path)
    model, _ = load(str(convert(tmp_path, dictionaries=2)))
    first = weights["decoder.embed_out"][:, :8]  # the sines' half
    assert torch.equal(model.lm_head.weight[:, 0::2], first)


def test_half_precision_is_converted_to_single(checkpoint, tmp_path):
    checkpoint["model"] = {name: weight.half() for name, weight in checkpoint["model"].items()}
    save(checkpoint, tmp_path)
    model, _ = load(str(convert(tmp_path)))
    assert model.dtype == torch.float32
    assert torch.equal(model.model.encoder.layers[1].fc1.bias, checkpoint["model"]["encoder.layers.1.fc1.bias"].float())


# What no conversion is exact for


@pytest.mark.parametrize("field", REFUSED_OPTIONS)
def test_an_option_that_makes_another_model_is_refused_by_its_name(field, tmp_path):
    write_fairseq_checkpoint(tmp_path, **{field: True})
    assert f"has {field}=True: " in refusal(tmp_path)


def test_an_unknown_activation_is_refused(tmp_path):
    write_fairseq_checkpoint(tmp_path, activation_fn="linear")
    assert "activation_fn='linear'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name, shape, reason",
    [
        ("encoder.layer_norm.weight", (16,), "has the weight encoder.layer_norm.weight, for which"),
        ("encoder.layers.0.layer_norms.2.weight", (16,), "has the weight encoder.layers.0.2.weight"),
        ("decoder.embed_length.weight", (5, 16), "has the weight decoder.embed_length.weight, for which"),
        ("decoder.layers.2.fc1.bias", None, "lacks the weight decoder.layers.2.fc1.bias"),
        ("encoder.layers.0.fc1.weight", None, "encoder_ffn_dim is 0"),
        ("decoder.layers.2.encoder_attn.k_proj.weight", (16, 20), r"encoder_attn.k_proj.weight in the shape (16, 20)"),
        ("decoder.embed_tokens.weight", (40, 16), "has 32 source types and 40 target types"),
        ("decoder.output_projection.weight", None, "has no decoder.output_projection.weight"),
        ("decoder.embed_tokens.weight", None, "has no decoder.embed_tokens.weight"),
    ],
)
def test_weights_that_are_not_the_papers_are_named(name, shape, reason, tmp_path):
    weights = write_fairseq_checkpoint(tmp_path, shared=False)
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.randn(shape)
    options = FAIRSEQ_OPTIONS | {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
    save({"args": Namespace(**options), "model": weights}, tmp_path)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    "contents",
    [
        {"model": fairseq_weights()},
        {"args": Namespace(**FAIRSEQ_OPTIONS)},
        {"args": Namespace(arch="lstm"), "model": {}},
        {"epoch": 3},
    ],
    ids=["no options", "no weights", "LSTM", "neither"],
)
def test_what_is_not_a_fairseq_transformer_is_refused(contents, tmp_path):
    write_fairseq_checkpoint(tmp_path)
    save(contents, tmp_path)
    assert "is not a checkpoint of fairseq's transformer" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no torch file", b"PK\x03\x04 cut off"])
def test_what_is_not_a_torch_file_is_refused(data, tmp_path):
    write_fairseq_checkpoint(tmp_path)
    whole = (tmp_path / "checkpoint_best.pt").read_bytes()
    for content in (data, whole[: len(whole) // 2]):
        (tmp_path / "checkpoint_best.pt").write_bytes(content)
        assert "can't read the checkpoint" in refusal(tmp_path)
    save([1], tmp_path)
    assert "holds a list" in refusal(tmp_path)
    (tmp_path / "checkpoint_best.pt").unlink()
    assert "can't open the checkpoint" in refusal(tmp_path)


# OpenNMT-py


def opennmt_weights(version: str) -> dict[str, torch.Tensor]:
    attention = ("keys", "values", "query", *(() if version == "2017" else ("final",)))
    names = {
        "2017": ["self_attn.layer_norm.a_2", "self_attn.layer_norm.b_2", "feed_forward.layer_norm.a_2"],
        "1.2": ["layer_norm.weight", "layer_norm.bias", "feed_forward.layer_norm.weight"],
        "3.5": ["layer_norm.weight", "layer_norm.bias", "feed_forward.layer_norm.weight"],
    }[version]
    linears = [f"self_attn.{'' if part == 'final' else 'linear_'}{part}" for part in attention]
    weights = {f"encoder.transformer.0.{name}": torch.randn(16) for name in names}
    weights |= {f"encoder.transformer.0.{name}.weight": torch.randn(16, 16) for name in linears}
    weights["encoder.embeddings.make_embedding.emb_luts.0.weight"] = torch.randn(10, 16)
    if version != "2017":
        weights |= {f"{stack}.layer_norm.weight": torch.randn(16) for stack in ("encoder", "decoder")}
    return weights


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "version, reason",
    [
        ("2017", r"norms (a_2, b_2) divide by the standard deviation plus 0.001"),
        ("1.2", "normalizes before each sub-layer and once more after the last (encoder.layer_norm)"),
        ("3.5", "normalizes before each sub-layer and once more after the last (encoder.layer_norm)"),
    ],
)
def test_models_of_opennmt_are_refused_with_the_reason(version, reason, zipped, tmp_path, monkeypatch):
    write_fairseq_checkpoint(tmp_path)
    contents = {
        "model": opennmt_weights(version),
        "generator": {"0.weight": torch.randn(10, 16), "0.bias": torch.randn(10)},
        "vocab": {"src": ["<blank>"]} if version == "3.5" else {"src": Field(), "tgt": Field()},
        "opt": Namespace(encoder_type="transformer", heads=8),
        "optim": Meter(),
    }
    save_and_forget_classes(contents, tmp_path, zipped, monkeypatch)
    sentence = refusal(tmp_path)
    assert "is a checkpoint of OpenNMT-py" in sentence and reason in sentence


def test_another_model_of_opennmt_is_refused_by_its_type(tmp_path):
    write_fairseq_checkpoint(tmp_path)
    weights = {"encoder.rnn.weight_ih_l0": torch.randn(4, 4)}
    save({"model": weights, "generator": {}, "vocab": [], "opt": Namespace(encoder_type="brnn")}, tmp_path)
    assert "has the encoder_type 'brnn'" in refusal(tmp_path)


# Code in a checkpoint


class Payload:
    """Unpickled, it calls a function with arguments."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, eval], ids=lambda function: function.__name__)
def test_no_code_in_a_checkpoint_is_run(function, zipped, checkpoint, tmp_path):
    harm = tmp_path / "harm"
    code = f"__import__('pathlib').Path({str(harm)!r}).touch()" if function is eval else f"touch '{harm}'"
    save(checkpoint | {"extra_state": Payload(function, code)}, tmp_path, zipped)
    torch.load(tmp_path / "checkpoint_best.pt", weights_only=False)
    assert harm.exists(), "the payload works where it is unpickled"
    harm.unlink()
    assert our_logits(convert(tmp_path)).isfinite().all()
    assert not harm.exists()


def test_a_weight_that_is_code_is_refused(checkpoint, tmp_path):
    harm, allowed = tmp_path / "harm", set(torch.serialization.get_safe_globals())
    checkpoint["model"]["encoder.layers.0.fc1.bias"] = Payload(eval, f"open({str(harm)!r}, 'w').close()")
    save(checkpoint, tmp_path)
    assert "the weight encoder.layers.0.fc1.bias is no tensor" in refusal(tmp_path)
    assert not harm.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


# The dictionary


def test_a_dictionary_that_the_model_was_not_trained_with_is_refused(tmp_path):
    write_fairseq_checkpoint(tmp_path)
    with (tmp_path / "dict.en.txt").open("a") as file:
        file.write("more 1\n")
    assert "dict.en.txt has 33 types, 4 special tokens included, but" in refusal(tmp_path)


def test_an_untied_model_needs_both_dictionaries_and_one_vocabulary(tmp_path):
    write_fairseq_checkpoint(tmp_path, shared=False)
    assert "give both dictionaries" in refusal(tmp_path)
    other = tmp_path / "dict.de.txt"
    other.write_text((tmp_path / "dict.en.txt").read_text().replace("w5@@", "v5@@"))
    with pytest.raises(UserError, match=r"dict\.en\.txt and .*dict\.de\.txt differ; only a joint dictionary"):
        convert_checkpoint(tmp_path / "checkpoint_best.pt", [tmp_path / "dict.en.txt", other], tmp_path / "converted")


def test_a_dictionary_is_read_with_the_special_tokens_first(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("the@@ 12\n, 7 \r\n# 5\nmadeupword0000 0\n", newline="")
    assert read_dictionary(path) == ["<s>", "<pad>", "</s>", "<unk>", "the@@", ",", "#", "madeupword0000"]


def test_a_dictionary_made_from_a_sentencepiece_vocabulary_is_read(tmp_path):
    """Its counts are scores times -1 or the like."""
    path = tmp_path / "dict.txt"
    path.write_text("\u2581the -0\n\u2581p -1\n", encoding="utf-8")
    assert read_dictionary(path)[4:] == ["\u2581the", "\u2581p"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("the 12\nof\n", "line 2 is 'of'; it must be a type and its count"),
        ("the 12\nof many\n", "line 2 is 'of many'"),
        ("the 12\n\n", "line 2 is ''"),
        ("the 12\nthe 3\n", "line 2: the type 'the' is there already"),
        ("the 12\nthe 3 #fairseq:overwrite\n", "line 2: the type 'the' is there already"),
        ("<pad> 3\n", "line 1: the type '<pad>' is there already"),
    ],
)
def test_a_dictionary_that_can_not_be_is_refused(text, reason, tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_dictionary(path)
    assert reason in str(error.value) and "dict.txt" in str(error.value)


# The script


def test_the_script_says_what_it_found_and_overwrites_nothing(tmp_path, run_script):
    write_fairseq_checkpoint(tmp_path)
    files = [tmp_path / "checkpoint_best.pt", "--dict", tmp_path / "dict.en.txt", "--output_dir", tmp_path / "out"]
    code, printed, _ = run_script("convert_checkpoint", *files)
    assert code == 0
    model, _ = load(str(tmp_path / "out"))
    for part in ("2 + 3 layers", "d_model 16", f"{model.num_parameters():,} parameters", "32 types", files[-1]):
        assert str(part) in printed
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    code, out, err = run_script("convert_checkpoint", *files)
    assert code == 2
    assert out == "" and err.startswith("error: ") and "already exists and is not empty" in err
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before


# Hostile or damaged contents


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("encoder.layers.0.fc1.weight", torch.tensor(1.0), "is float32 of shape ()"),
        ("encoder.layers.0.fc1.bias", torch.ones(24).long(), "is int64 of shape (24,)"),
        ("encoder.layers.0.fc1.bias", torch.full((24,), torch.nan), "must be floating point, finite"),
        ("encoder.embed_tokens.weight", torch.ones(32), "an embedding of 1 dimensions"),
        (7, torch.ones(1), "a weight with the name 7"),
        ("encoder.layers.5000.fc1.weight", torch.ones(1), "has the weight encoder.layers.5000.fc1.weight"),
        ("decoder.embed_tokens.weight", torch.ones(32, 2_000_000, dtype=torch.half), "in the shape (32, 2000000)"),
    ],
)
def test_a_weight_that_no_model_has_is_named(name, weight, reason, checkpoint, tmp_path):
    checkpoint["model"][name] = weight
    save(checkpoint, tmp_path)
    refused = refusal(tmp_path)
    assert reason in refused or "lacks the weight" in refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", "x"),
        ("dropout", 7),
        ("encoder_attention_heads", 0),
        ("decoder_attention_heads", [1]),
        ("dropout", {}),
    ],
)
def test_an_option_that_no_model_has_is_refused(field, value, tmp_path):
    write_fairseq_checkpoint(tmp_path, **{field: value})
    refusal(tmp_path)


def test_settings_that_hold_themselves_are_converted(checkpoint, tmp_path):
    args = vars(checkpoint["args"])
    args["again"] = args
    save({"cfg": {"model": args}, "model": checkpoint["model"]}, tmp_path)
    assert our_logits(convert(tmp_path)).isfinite().all()


def test_a_small_file_makes_no_large_model(checkpoint, tmp_path):
    """Two hundred layers that are one in the file."""
    weights = checkpoint["model"]
    for name in [name for name in weights if name.startswith("encoder.layers.1.")]:
        weights |= {name.replace(".1.", f".{number}.", 1): weights[name] for number in range(2, 200)}
    save(checkpoint, tmp_path)
    with pytest.raises(UserError, match=r"has weights of [\d,]+ bytes, more than the file has"):
        convert(tmp_path)
