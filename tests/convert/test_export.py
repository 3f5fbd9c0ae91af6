"""The model in other engines: MarianMT, CTranslate2 and ONNX."""

import errno
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZES, padded, ragged_batch, random_ids, randomized, small_model
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel
from transformers.utils.versions import require_version

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.base_vanilla_transformer import LIMIT_BY_SOURCE
from vanilla_transformer.convert.ctranslate2 import to_ctranslate2
from vanilla_transformer.convert.marian import from_marian, to_marian
from vanilla_transformer.convert.onnx import ONNX_NEEDS, to_onnx
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast, train_tokenizer
from vanilla_transformer.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/export.py"
MARIAN = {"rtol": 0, "atol": 1e-5}
VARIANTS = pytest.mark.parametrize(
    "overrides",
    [{}, {"tie_word_embeddings": False}, {"scale_embedding": False}, {"activation_function": "gelu"}],
    ids=["paper", "untied", "unscaled", "gelu"],
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["A man is riding a bike.", "Ein Mann fährt Rad."] * 2, 280)


@pytest.fixture
def model(tokenizer):
    return small_model(vocab_size=len(tokenizer))


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    """The model as training saves it."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def sources(tokenizer, *lengths: int) -> list[list[int]]:
    return [[*random_ids(n, vocab_size=len(tokenizer)).tolist(), tokenizer.eos_token_id] for n in lengths]


# MarianMT


@VARIANTS
@torch.no_grad()
def test_marian_has_the_same_logits(overrides):
    model, batch = small_model(**overrides), ragged_batch()
    marian = to_marian(model)
    assert type(marian) is MarianMTModel and not marian.training
    kept = batch["decoder_attention_mask"].bool()
    torch.testing.assert_close(marian(**batch).logits[kept], model(**batch).logits[kept], **MARIAN)


def test_a_marian_folder_needs_neither_the_package_nor_its_code(model, tokenizer, tmp_path):
    model.generation_config.num_beams = 4
    batch = tokenizer(["A man.", "A bike is riding a man."], padding=True, return_tensors="pt")
    decoder_input_ids = random_ids(2, 5)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=decoder_input_ids).logits
    torch.save([dict(batch), decoder_input_ids, logits, model.generate(**batch, max_new_tokens=9)], tmp_path / "ours")
    to_marian(model).save_pretrained(tmp_path / "marian")
    tokenizer.save_pretrained(tmp_path / "marian")
    code = """
import sys
sys.modules["vanilla_transformer"] = None
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("marian")
assert type(model).__module__ == "transformers.models.marian.modeling_marian", type(model)
batch, decoder_input_ids, logits, generated = torch.load("ours")
tokenizer = AutoTokenizer.from_pretrained("marian")
assert tokenizer(["A man.", "A bike is riding a man."], padding=True)["input_ids"] == batch["input_ids"].tolist()
with torch.no_grad():
    torch.testing.assert_close(model(**batch, decoder_input_ids=decoder_input_ids).logits, logits, rtol=0, atol=1e-5)
assert torch.equal(model.generate(**batch, max_new_tokens=9), generated)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "marian").iterdir()} == {".json", ".safetensors"}


def test_marian_keeps_the_generation_config():
    model = small_model()
    model.generation_config.num_beams, model.generation_config.length_penalty = 4, 0.6
    marian = to_marian(model, max_position_embeddings=30)
    generation = marian.generation_config
    assert marian.config.forced_eos_token_id is None  # Marian's own, 0, is our <s>
    assert (generation.num_beams, generation.length_penalty, generation.decoder_start_token_id) == (4, 0.6, 0)
    # MarianMT knows no limit that goes by the source's length, and transformers' own would be 20 tokens.
    assert generation.max_length == 30 and model.generation_config.max_length == LIMIT_BY_SOURCE
    model.generation_config.max_new_tokens = 7
    generation = to_marian(model).generation_config
    assert (generation.max_new_tokens, generation.max_length) == (7, None)


def test_marian_reads_as_many_tokens_as_its_table_has():
    marian = to_marian(small_model(), max_position_embeddings=6)
    marian(input_ids=random_ids(1, 6), decoder_input_ids=random_ids(1, 6))
    with pytest.raises(IndexError):
        marian(input_ids=random_ids(1, 7), decoder_input_ids=random_ids(1, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_is_bit_equal(tied, dtype):
    model = small_model(dtype=dtype, tie_word_embeddings=tied, dropout=0.1, attention_dropout=0.2)
    marian = to_marian(model)
    back = from_marian(marian)
    assert type(back) is VanillaTransformerForConditionalGeneration
    assert marian.dtype == back.dtype == dtype
    assert back.config.to_dict() == model.config.to_dict() | {"dtype": back.config.dtype}
    weights, expected = back.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def small_marian(**overrides) -> MarianMTModel:
    """Random, with the token ids that Marian's checkpoints have: the end is 0, and targets start with padding."""
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 60, "decoder_start_token_id": 60}
    fields = SIZES | ids | {"activation_function": "relu", "scale_embedding": True, "forced_eos_token_id": None}
    marian = MarianMTModel(MarianConfig(**(fields | overrides)))
    tables = {name: weight.clone() for name, weight in marian.state_dict().items() if "embed_positions" in name}
    randomized(marian).load_state_dict(tables, strict=False)
    marian.generation_config.bad_words_ids = [[60]]
    return marian.eval()


@torch.no_grad()
def test_a_marian_becomes_ours():
    marian = small_marian()
    model = from_marian(marian)
    input_ids, attention_mask = padded([random_ids(8), random_ids(5)], 8)
    batch = {"input_ids": input_ids.clamp(max=59), "attention_mask": attention_mask}
    decoder_input_ids = random_ids(2, 6).clamp(max=59)
    logits, expected = (m(**batch, decoder_input_ids=decoder_input_ids).logits for m in (model, marian))
    torch.testing.assert_close(logits, expected, **MARIAN)
    for num_beams in (1, 3):
        generated, expected = (m.generate(**batch, num_beams=num_beams, max_new_tokens=12) for m in (model, marian))
        assert torch.equal(generated, expected)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (60, 0, 60)


@pytest.mark.parametrize(
    "field, value",
    [
        ("activation_function", "swish"),
        ("normalize_before", True),
        ("normalize_embedding", True),
        ("static_position_embeddings", False),
        ("encoder_layerdrop", 0.1),
        ("share_encoder_decoder_embeddings", False),
        ("tie_word_embeddings", False),
    ],
)
def test_another_architecture_is_refused_by_its_field(field, value):
    with pytest.raises(UserError, match=rf"the Marian model's .*{field} is {value!r}"):
        from_marian(small_marian(**{field: value}))


def test_a_marian_with_two_vocabularies_is_refused():
    marian = small_marian(share_encoder_decoder_embeddings=False, tie_word_embeddings=False, decoder_vocab_size=70)
    with pytest.raises(UserError, match="decoder_vocab_size is 70, but only 61"):
        from_marian(marian)


def test_a_bias_of_the_output_layer_is_refused():
    marian = small_marian()
    marian.final_logits_bias[0, 5] = 0.1
    with pytest.raises(UserError, match="final_logits_bias"):
        from_marian(marian)


def test_another_kind_of_model_is_refused(tokenizer, tmp_path):
    model, marian = small_model(), small_marian()
    for convert, wrong in (
        (from_marian, model),
        (to_marian, marian),
        (to_marian, model.model),
        (lambda wrong: to_ctranslate2(wrong, tokenizer, tmp_path), marian),
        (lambda wrong: to_onnx(wrong, tmp_path), marian),
    ):
        with pytest.raises(UserError, match=f"^a {type(wrong).__name__} can't be converted: it must be a "):
            convert(wrong)


def test_adapters_are_not_dropped(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"])
    model = peft.get_peft_model(small_model(), config, autocast_adapter_dtype=False)  # peft's cast needs torch 2.7
    for wrapped in (model, model.base_model.model):
        with pytest.raises(UserError, match="with its adapters merged"):
            to_marian(wrapped)
    to_marian(model.merge_and_unload())


# CTranslate2


@pytest.fixture
def ctranslate2():
    return pytest.importorskip("ctranslate2")


@VARIANTS
@torch.no_grad()
def test_ctranslate2_gives_the_same_probabilities(overrides, tokenizer, ctranslate2, tmp_path):
    check_probabilities(small_model(vocab_size=len(tokenizer), **overrides), tokenizer, ctranslate2, tmp_path)


@torch.no_grad()
def test_fairseqs_positions_go_with_ctranslate2_and_not_with_marian(tokenizer, ctranslate2, tmp_path):
    model = small_model(vocab_size=len(tokenizer), position_convention="fairseq")
    check_probabilities(model, tokenizer, ctranslate2, tmp_path)
    with pytest.raises(UserError, match="position_convention is 'fairseq', but MarianMT"):
        to_marian(model)


def check_probabilities(model, tokenizer, ctranslate2, tmp_path) -> None:
    """Of each token of given targets."""
    to_ctranslate2(model, tokenizer, tmp_path)
    rows, targets = sources(tokenizer, 9, 1, 40), sources(tokenizer, 5, 70, 1)
    scored = ctranslate2.Translator(str(tmp_path)).score_batch(
        [tokenizer.convert_ids_to_tokens(row) for row in rows],
        [tokenizer.convert_ids_to_tokens(target[:-1]) for target in targets],
    )
    for row, target, result in zip(rows, targets, scored, strict=True):
        labels = torch.tensor([target])
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
        logits = model(input_ids=torch.tensor([row]), decoder_input_ids=decoder_input_ids).logits
        expected = F.log_softmax(logits, -1).gather(-1, labels[..., None]).flatten()
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_ctranslate2_finds_the_same_tokens(num_beams, model, tokenizer, ctranslate2, tmp_path):
    with torch.no_grad():
        model.model.shared.weight[tokenizer.eos_token_id] *= 3.5  # or no sentence would end
    to_ctranslate2(model, tokenizer, tmp_path)
    rows = sources(tokenizer, *range(1, 11))
    results = ctranslate2.Translator(str(tmp_path)).translate_batch(
        [tokenizer.convert_ids_to_tokens(row) for row in rows],
        beam_size=num_beams,
        length_penalty=0.6,
        patience=2 if num_beams > 1 else 1,
        min_decoding_length=0,
        max_decoding_length=25,
        return_scores=True,
    )
    lengths = set()
    for row, result in zip(rows, results, strict=True):
        output = model.generate(
            torch.tensor([row]),
            num_beams=num_beams,
            length_penalty=0.6 if num_beams > 1 else None,
            max_new_tokens=25,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, 1:].tolist()
        ended = tokenizer.eos_token_id in ids
        assert tokenizer.convert_tokens_to_ids(result.hypotheses[0]) == ids[: len(ids) - ended]
        if num_beams > 1:
            assert result.scores[0] == pytest.approx(output.sequences_scores.item(), rel=1e-4)
        lengths.add(len(ids) if ended else None)
    assert len(lengths) > 2


def test_the_converter_for_transformers_knows_the_model(model, folder, tokenizer, ctranslate2, tmp_path):
    import vanilla_transformer.convert.ctranslate2_loader  # noqa: F401

    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(tmp_path / "converted"), quantization="int8")
    to_ctranslate2(model, tokenizer, tmp_path / "exported", quantization="int8")
    names = {"config.json", "model.bin", "shared_vocabulary.json"}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == names
    for name in names:
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()


def test_int8_is_smaller_and_leaves_the_model_as_it_is(model, tokenizer, ctranslate2, tmp_path):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    to_ctranslate2(model.train(), tokenizer, tmp_path / "int8", quantization="int8")
    to_ctranslate2(model, tokenizer, tmp_path / "float32")
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    without_positions = [
        (tmp_path / name / "model.bin").stat().st_size - 1024 * model.config.d_model * 4 for name in ("int8", "float32")
    ]
    assert without_positions[0] < 0.6 * without_positions[1]
    translator = ctranslate2.Translator(str(tmp_path / "int8"))
    assert translator.compute_type.startswith("int8")
    (result,) = translator.translate_batch([["A", "</s>"]], max_decoding_length=5)
    assert result.hypotheses[0]


def test_a_tokenizer_beside_ctranslate2_or_marian_is_the_stock_one(model, tokenizer, ctranslate2, tmp_path):
    to_ctranslate2(model, tokenizer, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "A man is riding <s> a bike."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    ctranslate2.Translator(str(tmp_path))


def test_what_ctranslate2_can_not_have_is_refused(model, tokenizer, ctranslate2, tmp_path):
    new = tmp_path / "new"
    with pytest.raises(UserError, match="activation_function is 'tanh', which CTranslate2 does not have; it has gelu"):
        to_ctranslate2(small_model(vocab_size=len(tokenizer), activation_function="tanh"), tokenizer, new)
    with pytest.raises(UserError, match=f"the tokenizer has {len(tokenizer)} types, but the model's vocab_size is 61"):
        to_ctranslate2(small_model(), tokenizer, new)
    with pytest.raises(UserError, match="quantization is 'int4'; CTranslate2 has int8, "):
        to_ctranslate2(model, tokenizer, new, quantization="int4")
    assert not new.exists()


# ONNX


def needs_the_exporter() -> None:
    """Skip where the versions are older than the exporter."""
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    try:
        for requirement in ONNX_NEEDS:
            require_version(requirement)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    """A model and the folder it was exported to, once for all tests."""
    needs_the_exporter()
    torch.manual_seed(0)
    model = small_model(encoder_layers=1, decoder_layers=1, use_cache=False)  # as the Trainer leaves it
    model.generation_config.num_beams = 4
    folder = tmp_path_factory.mktemp("onnx")
    to_onnx(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def runners(onnx):
    from transformers.exporters import ExportedModel

    return ExportedModel.from_pretrained(onnx[1]).runners


@pytest.mark.parametrize(
    "lengths, target_length",
    [((5, 3), 3), ((7, 3, 9, 1), 4), ((6,), 6), ((4, 4, 4), 1), ((1,), 1), ((80, 2), 70)],
    ids=["as traced", "ragged", "source as long as target", "no padding", "one token", "long"],
)
@torch.no_grad()
def test_onnx_gives_the_same_logits(lengths, target_length, onnx, runners):
    model, _ = onnx
    input_ids, attention_mask = padded([random_ids(n) for n in lengths], max(lengths))
    target = random_ids(len(lengths), target_length + 3)
    expected = model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=target).logits

    memory = runners["encoder"](input_ids=input_ids, attention_mask=attention_mask)
    start = target[:, :target_length]
    output = runners["prefill"](encoder_outputs=memory, attention_mask=attention_mask, decoder_input_ids=start)
    logits = [output.logits]
    for step in range(target_length, target_length + 3):
        output = runners["decode"](
            encoder_outputs=memory,
            attention_mask=attention_mask,
            decoder_input_ids=target[:, step : step + 1],
            past_key_values=output.past_key_values,
        )
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-4)


def test_onnx_runtime_alone_writes_the_same_tokens(onnx):
    """Greedy search over the files, with nothing of transformers."""
    import onnxruntime

    model, folder = onnx
    graphs = {path.stem: onnxruntime.InferenceSession(path) for path in folder.glob("*.onnx")}
    assert graphs.keys() == {"encoder", "prefill", "decode"}
    input_ids, attention_mask = padded([random_ids(n) for n in (8, 3, 5)], 8)
    steps = 15
    expected = model.generate(
        input_ids, attention_mask=attention_mask, num_beams=1, min_new_tokens=steps, max_new_tokens=steps
    )

    def run(name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = graphs[name].run(None, inputs)
        names = (output.name.removeprefix("output.") for output in graphs[name].get_outputs())
        return dict(zip(names, outputs, strict=True))

    mask = attention_mask.numpy()
    (memory,) = run("encoder", input_ids=input_ids.numpy(), attention_mask=mask).values()
    given = {"encoder_outputs.last_hidden_state": memory, "attention_mask": mask}
    written = np.full((3, 1), model.config.decoder_start_token_id)
    cache: dict[str, np.ndarray] = {}
    for step in range(steps):
        output = run("decode" if step else "prefill", decoder_input_ids=written[:, -1:], **given, **cache)
        logits = output.pop("logits")[:, -1]
        logits[:, model.config.eos_token_id] = -np.inf  # as min_new_tokens has it
        written = np.concatenate([written, logits.argmax(-1, keepdims=True)], axis=1)
        cache = {f"input.{name}": keys for name, keys in output.items() if name.startswith("past_key_values")}
    assert written.tolist() == expected.tolist()


def test_onnx_files_name_no_file_of_this_machine(onnx):
    _, folder = onnx
    for path in folder.glob("*.onnx"):
        assert b".py" not in path.read_bytes()
        assert path.with_name(f"{path.name}.data").is_file()


def test_onnx_keeps_the_configs_and_leaves_the_model_as_it_is(onnx):
    from transformers.exporters import ExportedModel

    model, folder = onnx
    exported = ExportedModel.from_pretrained(folder)
    assert exported.config.to_diff_dict() == model.config.to_diff_dict() | {"dtype": "float32"}
    assert exported.generation_config.num_beams == 4
    assert model.config._attn_implementation == small_model().config._attn_implementation


def test_versions_that_are_too_old_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("vanilla_transformer.convert.onnx.ONNX_NEEDS", ("torch>=2.0", "transformers>=999"))
    with pytest.raises(
        UserError, match=r"needs torch>=2.0 and transformers>=999, but here are torch \d.* transformers \d"
    ):
        to_onnx(small_model(), tmp_path)


# What all have in common


def test_a_missing_library_is_named_with_its_command(model, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("vanilla_transformer.convert.onnx.ONNX_NEEDS", ())
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctranslate2", "onnx")]:
        monkeypatch.delitem(sys.modules, name)
    for name, extra, convert in (
        ("ctranslate2", "ct2", lambda: to_ctranslate2(model, tokenizer, tmp_path)),
        ("onnx", "onnx", lambda: to_onnx(model, tmp_path)),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError) as refusal:
            convert()
        expected = f"{name} is not installed; install it with: pip install 'vanilla-transformer[{extra}]'"
        assert str(refusal.value) == expected


def test_a_folder_in_use_is_left_alone(model, tokenizer, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for convert in (
        lambda: to_ctranslate2(model, tokenizer, tmp_path),
        lambda: to_onnx(model, tmp_path),
    ):
        with pytest.raises(UserError, match="already exists and is not empty"):
            convert()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


# The script


@pytest.fixture
def run(run_script):
    return functools.partial(run_script, "export")


def test_the_script_writes_model_and_tokenizer(run, folder, tokenizer, tmp_path):
    output = tmp_path / "marian"
    code, out, _ = run("--model_name_or_path", folder, "--to", "marian", "--output_dir", output)
    assert code == 0 and out.startswith(f"The model is in {output}; it loads with AutoModelForSeq2SeqLM")
    assert type(AutoModelForSeq2SeqLM.from_pretrained(output)) is MarianMTModel
    assert AutoTokenizer.from_pretrained(output)("A man")["input_ids"] == tokenizer("A man")["input_ids"]


def test_an_export_that_fails_half_way_leaves_nothing(run, folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    output = tmp_path / "above" / "marian"
    code, _, err = run("--model_name_or_path", folder, "--to", "marian", "--output_dir", output)
    assert code == 2 and f"can't write into {output}: No space left on device; free some space" in err
    assert not (tmp_path / "above").exists()


def test_the_script_quantizes(run, folder, ctranslate2, tmp_path):
    output = tmp_path / "ct2"
    arguments = ("--model_name_or_path", folder, "--to", "ctranslate2", "--quantization", "int8")
    code, out, _ = run(*arguments, "--output_dir", output)
    assert code == 0 and f'ctranslate2.Translator("{output}")' in out
    assert ctranslate2.Translator(str(output)).compute_type.startswith("int8")
    assert (output / "tokenizer.json").is_file()


def test_the_script_refuses_in_one_sentence(run, folder, tmp_path):
    code, out, err = run("--model_name_or_path", folder, "--to", "marian", "--output_dir", folder)
    assert (code, out) == (
        2,
        "",
    ) and err == f"error: {folder} already exists and is not empty; give another folder for the export\n"
    code, out, err = run(
        "--model_name_or_path", folder, "--to", "onnx", "--quantization", "int8", "--output_dir", tmp_path / "new"
    )
    assert (code, out) == (2, "") and "--quantization int8 goes with --to ctranslate2" in err


@pytest.mark.slow
def test_the_benchmark_runs_every_engine(folder, ctranslate2, tmp_path):
    needs_the_exporter()
    (tmp_path / "test.en").write_text("A man is riding a bike.\nA bike.\nA man.\n")
    (tmp_path / "test.de").write_text("Ein Mann fährt Rad.\nEin Rad.\nEin Mann.\n")
    files = ("--model_name_or_path", str(folder), "--test_file", str(tmp_path / "test"))
    command = (sys.executable, SCRIPT.parent / "benchmarks" / "engines.py", *files, "--rounds", "1")
    done = subprocess.run([*command, "--source_lang", "en", "--target_lang", "de"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines() if row.startswith("|")][2:]
    assert len(rows) == 6
    for engine, *cells in rows:
        assert len(cells) == 7 and float(cells[1]) >= 0 and float(cells[-1]) > 0
        if "int8" not in engine:
            assert cells[2] == cells[5] == "3 of 3", engine


class Louder(VanillaTransformerForConditionalGeneration):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs


def hooked(model):
    model.model.encoder.layers[0].fc1.register_forward_hook(lambda module, inputs, output: -output)
    return model


def with_another_activation(model):
    model.model.decoder.layers[0].activation = torch.nn.Tanh()
    return model


@pytest.mark.parametrize("change", [lambda model: Louder(model.config), hooked, with_another_activation])
def test_code_of_its_own_is_not_dropped(change, model, tokenizer, tmp_path):
    changed = change(model).eval()
    for convert in (to_marian, lambda changed: to_ctranslate2(changed, tokenizer, tmp_path / "out")):
        with pytest.raises(UserError, match="computes something else than a plain VanillaTransformerForConditional"):
            convert(changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [[2, 5], None, 7])
def test_other_ends_than_the_tokenizers_are_refused_by_ctranslate2(end, tokenizer, ctranslate2, tmp_path):
    model = small_model(vocab_size=len(tokenizer), eos_token_id=end)
    with pytest.raises(UserError, match="CTranslate2 ends a sentence with the tokenizer's 2, but .*eos_token_id"):
        to_ctranslate2(model, tokenizer, tmp_path / "out")


def test_an_export_into_the_folder_where_one_is(model, tokenizer, ctranslate2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_ctranslate2(model, tokenizer, ".")
    assert (tmp_path / "model.bin").is_file()
