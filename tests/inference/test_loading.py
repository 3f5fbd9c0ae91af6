"""Loading a saved model: what is loaded, and what is refused."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SENTENCES, SHORT, one_layer_config, wordy_model
from safetensors.torch import load_file, save_file

from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.translate import translate


def test_load_gives_the_saved_model(model, tokenizer, saved):
    loaded, its_tokenizer = load(str(saved), device="cpu")
    assert not loaded.training
    assert list(translate(loaded, its_tokenizer, SENTENCES, **SHORT)) == list(
        translate(model, tokenizer, SENTENCES, **SHORT)
    )


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_load_names_what_a_folder_lacks(saved, tmp_path, missing):
    for file in saved.iterdir():
        if file.name != missing and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=missing.replace(".", r"\.")) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_load_names_a_damaged_file(saved, tmp_path):
    for file in saved.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-model"])
def test_load_of_nothing(name):
    with pytest.raises(UserError, match=f"{name}: there is no such folder") as error:
        load(name)
    assert "\n" not in str(error.value)


def test_load_does_not_run_code_unasked(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModelForSeq2SeqLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="trust_remote_code"):
        load(str(tmp_path))


def test_load_to_a_device_that_is_not_there(saved):
    with pytest.raises(UserError, match="cuda:99") as error:
        load(str(saved), device="cuda:99")
    assert "\n" not in str(error.value)


def test_an_access_token_is_cleaned_and_never_shown(monkeypatch):
    def fail(*args, token, **kwargs):
        raise RuntimeError(f"Illegal header value Bearer {token}")

    for name in ("nobody/no-such-model", "./no/such/folder"):
        with pytest.raises(
            UserError, match="^the access token has characters that no token has; copy it again"
        ) as error:
            load(name, token="hf_SECRET\x00\u00e9")
        assert "SECRET" not in str(error.value)
    monkeypatch.setattr("vanilla_transformer.inference.model_files.cached_file", fail)
    for token in ("hf_SECRET\n", "\thf_SECRET\r\n"):
        with pytest.raises(UserError, match=r"the Hugging Face Hub gave: Illegal header value Bearer \*\*\*$"):
            load("nobody/no-such-model", token=token)
    with pytest.raises(UserError, match="Bearer None$"):
        load("nobody/no-such-model", token="\n")


def damage(saved, folder, changes):
    """Copy a saved model; a change replaces a file by bytes, updates the fields of a JSON file, or calls a function."""
    for file in saved.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    for name, change in changes.items():
        path = folder / name
        if callable(change):
            change(path)
        elif isinstance(change, bytes):
            path.write_bytes(change)
        else:
            path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | change))


def change_weights(function):
    """Return a change that applies a function to the dictionary of weights."""

    def change(path):
        weights = load_file(path)
        function(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return change


def set_nan(weights):
    weights["model.encoder.layers.0.fc1.weight"][3, 2] = math.nan


def add_weight(weights):
    weights["odd"] = torch.zeros(1)


def drop_layer(weights):
    for name in [name for name in weights if name.startswith("model.decoder.layers.0.")]:
        del weights[name]


def quantize(weights):
    weights["model.encoder.layers.0.fc1.weight"] = weights["model.encoder.layers.0.fc1.weight"].to(torch.int8)


def widen(weights):
    weights["model.encoder.layers.0.fc1.weight"] = torch.zeros(64, 16)


def move_to_pickle(path):
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shard_of_a_run(path):
    shutil.copy(path, path.with_name("shard-00005-model-00001-of-00001.safetensors"))


def edit_tokenizer(edit):
    """Return a change of tokenizer.json."""

    def change(path):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


CONFIG, TOKENIZER, GENERATION, WEIGHTS = "config.json", "tokenizer.json", "generation_config.json", "model.safetensors"
DAMAGES = {
    "weights missing": ({WEIGHTS: change_weights(drop_layer)}, r"lack model\.decoder\.layers\.0\..* more weights"),
    "weights unexpected": (
        {WEIGHTS: change_weights(add_weight)},
        "model.safetensors has odd",
    ),
    "weights not finite": ({WEIGHTS: change_weights(set_nan)}, r"layers\.0\.fc1\.weight holds NaN"),
    "weights int8": ({WEIGHTS: change_weights(quantize)}, r"fc1\.weight is of type I8; weights must be one of F32"),
    "weights of another shape": (
        {WEIGHTS: change_weights(widen)},
        r"shape \[64, 16\], but .* asks for \[32, 16\]",
    ),
    "weights cut off": ({WEIGHTS: cut}, r"model\.safetensors can't be read as safetensors"),
    "weights empty": ({WEIGHTS: b""}, r"model\.safetensors can't be read as safetensors"),
    "weights pickled": (
        {WEIGHTS: move_to_pickle},
        r"pytorch_model\.bin but no model\.safetensors; a pickle",
    ),
    "an adapter": ({"adapter_config.json": {}}, "adapter of PEFT"),
    "a shard missing": (
        {WEIGHTS: Path.unlink, f"{WEIGHTS}.index.json": {"weight_map": {"a": "model-1.safetensors"}}},
        r"has no model-1\.safetensors",
    ),
    "a shard elsewhere": (
        {WEIGHTS: Path.unlink, f"{WEIGHTS}.index.json": {"weight_map": {"a": "../model.safetensors"}}},
        r"weight_map must name .*'\.\./model\.safetensors'",
    ),
    "an index without map": (
        {WEIGHTS: Path.unlink, f"{WEIGHTS}.index.json": {"weight_map": 3}},
        "weight_map must name",
    ),
    "weights of a distributed run": (
        {WEIGHTS: shard_of_a_run},
        r"has shard-00005-model-00001-of-00001\.safetensors, which transformers would read in place",
    ),
    "config null": ({CONFIG: b"null"}, r"config\.json holds null, not a JSON object"),
    "config list": ({CONFIG: b"[1, 2]"}, r"config\.json holds \[1, 2\], not a JSON object"),
    "config empty": ({CONFIG: b""}, r"config\.json is not JSON"),
    "config cut off": ({CONFIG: cut}, r"config\.json is not JSON"),
    "config not UTF-8": ({CONFIG: b'{"a": "\xe9"}'}, r"config\.json is not JSON"),
    "config nested": ({CONFIG: b"[" * 100_000}, r"config\.json is not JSON"),
    "config of Marian": (
        {CONFIG: {"model_type": "marian"}},
        "model_type is 'marian'; it must be",
    ),
    "config of a decoder": ({CONFIG: {"model_type": "gpt2"}}, "model_type is 'gpt2'"),
    "config of nothing": ({CONFIG: {"model_type": None, "auto_map": None}}, "model_type is None"),
    "config type a list": ({CONFIG: {"model_type": [1], "auto_map": None}}, r"model_type is \[1\]"),
    "a billion layers": (
        {CONFIG: {"encoder_layers": 10**9}},
        "encoder_layers is 1,000,000,000, but the weight",
    ),
    "more layers than weights": ({CONFIG: {"decoder_layers": 12}}, r"lack model\.decoder\.layers\.1\..* more weights"),
    "a huge vocabulary": ({CONFIG: {"vocab_size": 10**15}}, r"asks for \[1000000000000000, 16\]"),
    "an impossible vocabulary": ({CONFIG: {"vocab_size": 10**30}}, r"config\.json"),
    "a huge width": ({CONFIG: {"d_model": 2**40}}, r"config\.json does not describe a model"),
    "a billion labels": ({CONFIG: {"num_labels": 10**9}}, "num_labels is 1000000000; it must be from 0 to 10,000"),
    "a field of the wrong type": ({CONFIG: {"encoder_layers": "two"}}, r"config\.json: .*encoder_layers"),
    "a field out of range": ({CONFIG: {"dropout": 7}}, r"config\.json: dropout is 7"),
    "dtype unknown": ({CONFIG: {"dtype": "float99"}}, "dtype is 'float99'; it must be one of float32"),
    "dtype integer": ({CONFIG: {"torch_dtype": "int8"}}, "torch_dtype is 'int8'"),
    "dtype a number": ({CONFIG: {"dtype": 32}}, "dtype is 32"),
    "quantized": ({CONFIG: {"quantization_config": {"quant_method": "torchao"}}}, "quantization_config"),
    "attention from the Hub": ({CONFIG: {"attn_implementation": "a/kernel"}}, "attn_implementation is 'a/kernel'"),
    "auto_map a string": ({CONFIG: {"auto_map": "x"}}, "auto_map is .*x.*; it must map"),
    "auto_map of numbers": ({CONFIG: {"auto_map": {"AutoConfig": 3}}}, "auto_map is .*3.*; it must map"),
    "another config": ({CONFIG: {"configuration_files": ["config.4.0.0.json"]}}, "has configuration_files, so"),
    "attention to what follows": ({CONFIG: {"is_causal": False}}, "is_causal is false, which would change what the"),
    "attention to nothing else": ({CONFIG: {"is_causal": None}}, "is_causal is null"),
    "a window": ({CONFIG: {"sliding_window": 2}}, "sliding_window is 2, which .*; remove the field"),
    "a chunk": ({CONFIG: {"attention_chunk_size": 2}}, "attention_chunk_size is 2"),
    "types of layers": ({CONFIG: {"layer_types": ["moe"]}}, r"layer_types is \[.moe.\]"),
    "shared keys": ({CONFIG: {"num_kv_shared_layers": 1}}, "num_kv_shared_layers is 1"),
    "reused keys": ({CONFIG: {"kv_sharing_modes": ["reuse"]}}, "kv_sharing_modes is "),
    "code of a derived class": (
        {CONFIG: {"auto_map": {"AutoModelForSeq2SeqLM": "loud.Loud"}}},
        r"one of the class loud\.Loud, whose code comes with it; .* with trust_remote_code",
    ),
    "weights by another name": ({CONFIG: {"transformers_weights": "x.bin"}}, "has transformers_weights"),
    "generation config cut off": ({GENERATION: cut}, r"generation_config\.json is not JSON"),
    "generation config null": ({GENERATION: b"null"}, r"generation_config\.json holds null"),
    "tokenizer cut off": ({TOKENIZER: cut}, "can't load the tokenizer .*"),
    "tokenizer null": ({TOKENIZER: b"null"}, "can't load the tokenizer .*"),
    "tokenizer empty": ({TOKENIZER: b""}, "can't load the tokenizer .*"),
    "tokenizer without model": ({TOKENIZER: edit_tokenizer(lambda t: t.pop("model"))}, "can't load the tokenizer .*"),
    "tokenizer of nonsense": (
        {TOKENIZER: edit_tokenizer(lambda t: t["model"].update(merges=[["no", "such"]]))},
        "can't load the tokenizer .*",
    ),
    "tokenizer too large": (
        {TOKENIZER: edit_tokenizer(lambda t: t["model"]["vocab"].update(zebra=len(t["model"]["vocab"])))},
        "the tokenizer has ids up to .* is that of another model",
    ),
    "tokenizer with an id out of range": (
        {TOKENIZER: edit_tokenizer(lambda t: t["post_processor"]["special_tokens"]["</s>"].update(ids=[999]))},
        "ids up to 999",
    ),
    "tokenizer with another end": (
        {"tokenizer_config.json": {"eos_token": "<s>"}},
        r"eos_token_id is 0 in the tokenizer, but 2 in the model's config\.json",
    ),
    "tokenizer without padding": ({"tokenizer_config.json": {"pad_token": None}}, "has no pad_token"),
    "tokenizer without end": ({"tokenizer_config.json": {"eos_token": None}}, "has no eos_token"),
    "tokenizer config null": ({"tokenizer_config.json": b"null"}, r"tokenizer_config\.json holds null"),
    "tokenizer config list": ({"tokenizer_config.json": {"pad_token": [1]}}, "tokenizer"),
    "tokenizer auto_map": ({"tokenizer_config.json": {"auto_map": 3}}, r"tokenizer_config\.json: auto_map is 3"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused_with_file_and_reason(saved, tmp_path, changes, message, monkeypatch, capfd):
    def fail(*args, **kwargs):
        raise AssertionError("unpickled")

    damage(saved, tmp_path, changes)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=message) as error:
        load(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", "four"), ("num_beams", 0), ("num_beams", 10**6), ("num_beams", True),
        ("length_penalty", math.nan), ("length_penalty", "1"), ("length_penalty", 1e9),
        ("max_new_tokens", 0), ("max_length", -5), ("max_length", "20"), ("min_length", -1),
        ("eos_token_id", 10**6), ("eos_token_id", [2, -1]), ("decoder_start_token_id", 10**6), ("pad_token_id", "1"),
        ("do_sample", "yes"), ("temperature", 0), ("top_p", 2), ("early_stopping", "soon"), ("use_cache", 3),
        ("cache_implementation", "nonsense"),  ("num_return_sequences", 9),
    ],
)  # fmt: skip
def test_an_impossible_generation_config_is_refused(saved, tmp_path, field, value):
    damage(saved, tmp_path, {GENERATION: {field: value}})
    with pytest.raises(UserError, match=rf"generation_config\.json.*{field}") as error:
        load(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)


def test_a_model_without_generation_config_loads(saved, tmp_path):
    damage(saved, tmp_path, {GENERATION: Path.unlink})
    load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_beams", 0), ("length_penalty", math.nan), ("suppress_tokens", [10**6])],
)
def test_without_generation_config_its_fields_in_the_config_are_checked(saved, tmp_path, field, value):
    damage(saved, tmp_path, {CONFIG: {field: value}})
    load(str(tmp_path), device="cpu")  # not read
    (tmp_path / GENERATION).unlink()
    with pytest.raises(UserError, match=rf"/config\.json.*{field}"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["whole", "shards", "base model", "float16", "all names"])
def test_each_form_of_a_whole_model_loads(tokenizer, tmp_path, tied, form):
    model = wordy_model(tokenizer, dropout=0.0)
    model = type(model)(one_layer_config(tokenizer, tie_word_embeddings=tied)).eval()
    if form == "float16":
        model.half()
    saved = model.model if form == "base model" and tied else model
    saved.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "1GB")
    if form == "all names":  # tied weights under all of their names, as other programs save them
        (tmp_path / WEIGHTS).unlink()
        save_file({name: weight.clone() for name, weight in model.state_dict().items()}, tmp_path / WEIGHTS)
    tokenizer.save_pretrained(tmp_path)
    assert (form == "shards") == (tmp_path / f"{WEIGHTS}.index.json").exists()
    loaded, _ = load(str(tmp_path), device="cpu")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_weights_of_two_saves_are_refused_and_a_save_over_shards_is_not(model, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    model.save_pretrained(tmp_path)  # removes the shards, and leaves their index
    assert (tmp_path / f"{WEIGHTS}.index.json").exists()
    load(str(tmp_path), device="cpu")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with pytest.raises(UserError, match=r"has both model\.safetensors and model-00001-of-\d+\.safetensors, .*; remove"):
        load(str(tmp_path), device="cpu")
    (tmp_path / WEIGHTS).unlink()
    load(str(tmp_path), device="cpu")
    model.save_pretrained(tmp_path)
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}}))
    load(str(tmp_path), device="cpu")


DERIVED = """
import torch
from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration


class LoudConfig(VanillaTransformerConfig):
    loudness: float = 3.0

    @property
    def volume(self):
        return 2 * self.loudness


class Loud(VanillaTransformerForConditionalGeneration):
    config_class = LoudConfig

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.gain * self.config.volume
        return output
"""


def test_a_derived_class_is_loaded_as_itself_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    """With a weight and a config of its own, whose model type is this package's."""
    (tmp_path / "loud.py").write_text(DERIVED)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("loud")
    fields = one_layer_config(tokenizer).to_dict()
    del fields["auto_map"]
    model = module.Loud(module.LoudConfig(**fields, loudness=5.0)).eval()
    model.gain.data.fill_(7)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=r"the model is one of the class loud\.Loud, .* with trust_remote_code"):
        load(str(tmp_path / "saved"), device="cpu")
    loaded, _ = load(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert (type(loaded).__name__, type(loaded.config).__name__) == ("Loud", "LoudConfig")
    assert (loaded.config.volume, loaded.config._attn_implementation) == (10, "sdpa")
    ids = torch.tensor([[5, 6, 2]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids, labels=ids).logits, model(input_ids=ids, labels=ids).logits)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(model, saved, name):
    dtype = getattr(torch, name)
    expected = copy.deepcopy(model).to(dtype).state_dict()
    for given in (name, dtype):
        loaded, _ = load(str(saved), device="cpu", dtype=given)
        assert loaded.dtype is dtype
        assert all(torch.equal(weight, expected[key]) for key, weight in loaded.state_dict().items())


def test_a_model_that_is_saved_in_bfloat16_is_loaded_so_unless_told(model, tokenizer, tmp_path):
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu")[0].dtype is torch.bfloat16
    assert load(str(tmp_path), device="cpu", dtype="float32")[0].dtype is torch.float32


def test_a_dtype_is_refused_that_does_not_exist_or_can_not_hold_the_weights(model, tokenizer, saved, tmp_path):
    for dtype in ("int8", "bf16", torch.int8, ""):
        with pytest.raises(UserError, match="^dtype is '.*'; it must be auto, float32, bfloat16, float16, float64$"):
            load(str(saved), device="cpu", dtype=dtype)
    large = copy.deepcopy(model)
    large.model.encoder.layers[0].fc1.weight.data[0, 0] = 1e6
    large.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load(str(tmp_path), device="cpu", dtype="bfloat16")
    with pytest.raises(
        UserError, match=r"fc1\.weight holds NaN or infinity in float16, .* or a dtype of greater range"
    ):
        load(str(tmp_path), device="cpu", dtype="float16")


@pytest.mark.parametrize("source", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"])
def test_a_tied_weight_may_have_any_of_its_names(tokenizer, tmp_path, source):
    model = wordy_model(tokenizer)
    model = type(model)(one_layer_config(tokenizer)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights[source] = weights.pop("model.shared.weight")
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    loaded, _ = load(str(tmp_path), device="cpu")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.model.encoder.embed_tokens.weight, model.lm_head.weight)


def test_a_strangers_tokenizer_code_neither_runs_nor_is_saved_on(saved, tmp_path):
    fields = {"auto_map": {"AutoTokenizer": ["stranger/repository--code.Tokenizer", None]}}
    damage(saved, tmp_path, {"tokenizer_config.json": fields})
    _, tokenizer = load(str(tmp_path), device="cpu", trust_remote_code=True)
    tokenizer.save_pretrained(tmp_path / "again")
    assert "stranger" not in (tmp_path / "again" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", "", "cpu:x"])
def test_a_device_that_cannot_compute_is_refused_before_anything_is_loaded(device):
    with pytest.raises(UserError, match=f"device is '{device}'.*there is cpu") as error:
        load("no/such/model", device=device)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_drops_merges_does_so_no_more(saved, tmp_path, caplog):
    """`tokenizers` saves its BPE-dropout, which would make every translation another one."""
    folder = shutil.copytree(saved, tmp_path / "dropping")
    description = json.loads((folder / "tokenizer.json").read_text())
    description["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(description))
    _, tokenizer = load(str(folder), device="cpu")
    assert "drops merges at random (dropout 0.5)" in caplog.text
    assert len({tuple(tokenizer("the cat sleeps all day long")["input_ids"]) for _ in range(20)}) == 1
    tokenizer.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["model"]["dropout"] is None
