"""Saving for the Hub, pushing and checking, against a Hub on loopback."""

import errno
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import one_layer_config, randomized
from hub_client import Client
from hub_server import TOKEN, Hub, running_hub
from huggingface_hub import ModelCard, SpaceCard
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.hub import weights
from vanilla_transformer.hub.push import push_to_hub, save_for_hub
from vanilla_transformer.hub.verify import verify
from vanilla_transformer.inference.loading import load

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
CODE_FILES = {f"{name}_vanilla_transformer.py" for name in ("configuration", "modeling", "kernels", "base")}
FILES = CODE_FILES | {"config.json", "generation_config.json", "model.safetensors"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "README.md"}
PIPELINE_FILES = {
    "pipeline_vanilla_transformer.py",
    "generation_vanilla_transformer.py",
    "step_decoder_vanilla_transformer.py",
    "integrity_vanilla_transformer.py",
    "eval_mode_vanilla_transformer.py",
    "language_tags_vanilla_transformer.py",
}
SPACE_FILES = ["illustrated/index.html", "illustrated/README.md"]
ANSWERS = ("AutoConfig: ", "AutoTokenizer: ", "AutoModel: ", "AutoModelForSeq2SeqLM: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a model, as training writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "run"
    tokenizer = train_tokenizer(["forty-two", "one thousand and one"] * 2, 270)
    model = randomized(VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer))).eval()
    model.generation_config.num_beams = 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub
        assert not hub.unknown


@pytest.fixture(scope="module")
def clients(hub, run) -> Iterator[dict[str, Client]]:
    """Processes of a user of the package, and of a stranger without it."""
    clients = {}
    for name, arguments in (("user", ()), ("stranger", ("stranger",))):
        folder = run.parent / name
        folder.mkdir()
        clients[name] = Client(hub, folder, *arguments)
    yield clients
    for client in clients.values():
        client.close()
        assert not client.outside.exists(), client.outside.read_text()


@pytest.fixture(scope="module")
def user(clients, run) -> Client:
    clients["user"](f"""
from huggingface_hub import ModelCard
import vanilla_transformer
from vanilla_transformer.inference.loading import load
from vanilla_transformer.hub.push import push_to_hub
from vanilla_transformer.hub.verify import verify
model, tokenizer = load({str(run)!r}, device="cpu")
card = ModelCard("---\\nlicense: mit\\n---\\nthe card")
token = {TOKEN!r}
""")
    return clients["user"]


# Saving


def test_a_folder_for_the_hub_is_whole_and_checked(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "saved"
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["--model_name_or_path", str(run), "--output_dir", str(folder), "--repo_id", "me/numbers"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--example", "forty-two"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    enable_progress_bar()  # which the script leaves off
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"The model is in {folder}", "The card names no license; --license gives one."]
    assert len(lines) == 6 and all(line.startswith(name) for line, name in zip(lines[2:], ANSWERS, strict=True))
    assert {path.name for path in folder.iterdir()} == FILES | PIPELINE_FILES
    assert 'from_pretrained("me/numbers"' in ModelCard.load(folder / "README.md").text
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_page_stands_beside_the_model_as_in_a_static_space(run, tmp_path, run_script, monkeypatch):
    folder = tmp_path / "saved"
    arguments = ["--model_name_or_path", run, "--output_dir", folder, "--repo_id", "me/numbers", "--license", "mit"]
    code, out, err = run_script("push_to_hub", *arguments, "--illustrated", "--example", "forty-two")
    assert (code, err) == (0, "") and out.splitlines()[-2:] == [f"{name}: the same bytes" for name in SPACE_FILES]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        *FILES,
        *PIPELINE_FILES,
        *SPACE_FILES,
    }
    card = SpaceCard.load(folder / "illustrated" / "README.md").data
    assert (card.sdk, card.app_file, card.title, card.license) == ("static", "index.html", "numbers, opened", "mit")
    assert card.models == ["me/numbers"]
    page = (folder / "illustrated" / card.app_file).read_text(encoding="utf-8")
    assert '"name":"me/numbers"' in page and '"sentence":"forty-two"' in page
    assert "`illustrated/index.html` is a page in which the model runs" in (folder / "README.md").read_text()

    model, tokenizer = load(str(run), device="cpu")
    monkeypatch.setattr("vanilla_transformer.hub.verify._ask_fresh_process", pytest.fail)  # is not come to
    for text in (f"{page} ", page):
        with pytest.raises(UserError, match="illustrated/index.html is not there, or not as it was written"):
            verify(folder, model, tokenizer, texts={"illustrated/index.html": text})
        (folder / "illustrated" / "index.html").unlink(missing_ok=True)


def test_what_arrives_otherwise_is_found(run, tmp_path):
    """One bit, too low for the logits to show it; and a file is missing."""
    model, tokenizer = load(str(run), device="cpu")
    save_for_hub(model, tokenizer, tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    weights["model.shared.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "saved" / "modeling_vanilla_transformer.py").unlink()
    with pytest.raises(UserError) as error:
        verify(tmp_path / "saved", model, tokenizer)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'saved'} does not load as the model in memory: ")
    assert "AutoModel without the package: OSError: " in message and "modeling_vanilla_transformer.py" in message
    assert "AutoModelForSeq2SeqLM with the package: weights differ" in message
    assert "AutoConfig" not in message and "AutoTokenizer" not in message


def test_a_tokenizer_of_any_class_is_saved_for_both_versions(run, tmp_path):
    model, tokenizer = load(str(run), device="cpu")
    stock = AutoTokenizer.from_pretrained(run)
    assert type(stock).__name__ == "TokenizersBackend"
    for name, saved in (("ours", tokenizer), ("stock", stock)):
        save_for_hub(model, saved, tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not config.keys() & {"is_local", "local_files_only", "name_or_path", "auto_map", "added_tokens_decoder"}
        card = ModelCard.load(tmp_path / name / "README.md")
        assert f"# {name}\n" in card.text and card.data.pipeline_tag == "translation"
    again = AutoTokenizer.from_pretrained(tmp_path / "stock")
    assert again("forty-two</s>")["input_ids"] == tokenizer("forty-two</s>")["input_ids"]


def test_a_folder_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="already exists and is not empty"):
        save_for_hub(*load(str(run), device="cpu"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def refuse_to_save(model, tokenizer, folder: Path) -> str:
    """Save and push a model, which must both be refused with the same words; these."""
    messages = set()
    for save in (lambda: save_for_hub(model, tokenizer, folder), lambda: push_to_hub(model, tokenizer, "name")):
        with pytest.raises(UserError) as error:
            save()
        messages.add(str(error.value))
    assert not folder.exists()
    return messages.pop() if len(messages) == 1 else pytest.fail(str(messages))


def test_what_is_not_a_whole_model_is_refused(run, tmp_path):
    model, tokenizer = load(str(run), device="cpu")
    message = refuse_to_save(torch.nn.DataParallel(model), tokenizer, tmp_path / "saved")
    assert message == "the model is wrapped (DataParallel); give the model that is inside"
    message = refuse_to_save(model.model, tokenizer, tmp_path / "saved")
    assert message == "a VanillaTransformerModel has no output layer; give the whole model that it is a part of"
    packed = type("Packed", (torch.nn.Module,), {"get_extra_state": lambda self: (1, "weights")})
    model.packed = packed()  # as torch.ao's quantized layers have among their weights
    message = refuse_to_save(model, tokenizer, tmp_path / "saved")
    assert message == "the model has quantized weights, which have no safetensors; give it as it was before"


def test_a_model_with_an_adapter_is_refused_until_it_is_merged(run, tmp_path):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q_proj"])
    model, tokenizer = load(str(run), device="cpu")
    adapted = peft.get_peft_model(model, adapter)
    assert "has an adapter of PEFT; merge it" in refuse_to_save(adapted, tokenizer, tmp_path / "saved")
    save_for_hub(adapted.merge_and_unload(), tokenizer, tmp_path / "merged")
    model.add_adapter(adapter)
    assert "has an adapter of PEFT; merge it" in refuse_to_save(model, tokenizer, tmp_path / "saved")


def test_only_a_full_disk_is_called_so(run, tmp_path, monkeypatch):
    model, tokenizer = load(str(run), device="cpu")
    for code, remedy in ((errno.ENOENT, "check the folder"), (errno.ENOSPC, "free some space")):

        def fail(*args, code=code):
            raise OSError(code, "said the system")

        monkeypatch.setattr("vanilla_transformer.hub.push._save_model", fail)
        with pytest.raises(UserError, match=f"can't write the model into .* said the system; {remedy}$"):
            save_for_hub(model, tokenizer, tmp_path / "saved")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give a --repo_id to push to, or an --output_dir to write into"),
        (["--repository", "x"], "unrecognized arguments: --repository x"),
        (["--output_dir", "x", "--scores", "no-such.json"], "error: no-such.json can't be read"),
    ],
)
def test_the_script_refuses_what_it_can_not_do(run, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model_name_or_path", str(run), *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    enable_progress_bar()  # which the script leaves off
    assert exit.value.code == 2 and message in capsys.readouterr().err


# Pushing


def test_a_private_push_arrives_and_is_checked(hub, user, run):
    """By the script; the checking process has the token from it too."""
    first = len(hub.requests)
    arguments = ["--model_name_or_path", str(run), "--repo_id", "mine", "--private", "--token", TOKEN]
    script = "from vanilla_transformer.commands import push; push.main"
    answer = user.ask(f"{script}({[*arguments, '--license', 'mit', '--commit_message', 'First']})")
    assert "error" not in answer, answer
    lines = answer["printed"].splitlines()
    assert lines[0] == f"The model is at {hub.url}/user/mine"
    assert all(line.startswith(name) for line, name in zip(lines[1:], ANSWERS, strict=True))
    repository = hub.repositories["user/mine"]
    assert (
        hub.visibility["user/mine"] == "private"
        and repository.private
        and [title for _, title, _ in repository.commits] == ["initial commit", "First"]
    )
    assert repository.files.keys() == FILES | PIPELINE_FILES | {".gitattributes"}
    assert repository.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "mit" and 'AutoTokenizer.from_pretrained("user/mine"' in card.text
    resolved = [request for request in hub.requests[first:] if "/resolve/" in request[1]]
    assert len(resolved) > len(FILES) and all(with_token for _, _, with_token in resolved)


def test_a_pushed_page_arrives_and_is_checked(hub, user, run):
    arguments = ["--model_name_or_path", str(run), "--repo_id", "opened", "--token", TOKEN, "--license", "mit"]
    answer = user.ask(f"from vanilla_transformer.commands import push; push.main({[*arguments, '--illustrated']})")
    assert "error" not in answer, answer
    assert answer["printed"].splitlines()[-2:] == [f"{name}: the same bytes" for name in SPACE_FILES]
    assert hub.visibility["user/opened"] is None  # what the account's default says
    repository = hub.repositories["user/opened"]
    assert repository.files.keys() == {*FILES, *PIPELINE_FILES, *SPACE_FILES, ".gitattributes"}
    assert len(repository.commits) == 2 and b'"name":"user/opened"' in repository.files["illustrated/index.html"]
    message = user.refused(
        "verify('user/opened', model, tokenizer, token=token, texts={'illustrated/index.html': 'x'})"
    )
    assert "user/opened: illustrated/index.html is not there, or not as it was written" in message


def test_who_has_no_token_or_a_wrong_one_is_told(hub, user):
    before = set(hub.repositories)
    for given in ("token='hf_wrong'", ""):
        for name in ("user/other", "other"):
            message = user.refused(f"push_to_hub(model, tokenizer, {name!r}, {given})")
            assert message.startswith(f"the push to {name} failed: the Hub does not know the token, or there is none")
            assert message.endswith("nothing was sent")
    message = user.refused("push_to_hub(model, tokenizer, 'stranger/theirs', token=token)")
    assert "the token may not write there (You don't have the rights" in message and "nothing was sent" in message
    assert set(hub.repositories) == before
    for name, given in (("user/mine", "token='hf_wrong'"), ("user/mine", ""), ("user/none", "token=token")):
        assert user.refused(f"load({name!r}, {given})").startswith(
            f"can't load the model {name}: there is no such folder"
        )


def test_a_token_is_read_from_a_file_with_line_ends_and_never_shown(hub, user):
    pushed = user("answer = push_to_hub(model, tokenizer, 'lines', card, token=token + '\\r\\n')")
    assert pushed == "user/lines"
    user("verify('user/lines', model, tokenizer, token=token + '\\n'); load('user/lines', token=token + '\\r')")
    for given in ("hf_SECRET\\x00x", "hf_SECRET\\u00e9"):
        for call in (
            "push_to_hub(model, tokenizer, 'user/x', token='{}')",
            "push_to_hub(model, tokenizer, 'x', token='{}')",
        ):
            message = user.refused(call.format(given))
            assert message.startswith("the access token has characters that no token has") and "SECRET" not in message


def test_nothing_public_is_taken_for_private_and_no_card_is_lost(hub, user):
    push = "push_to_hub(model, tokenizer, 'shown', card, token=token{})"
    user(push.format(""))
    assert not hub.repositories["user/shown"].private
    assert "user/shown is there already and public" in user.refused(push.format(", private=True"))
    hub.repositories["user/shown"].files["README.md"] = b"---\nlicense: mit\n---\nby hand"
    assert "user/shown has a README.md already" in user.refused(push.format(""))
    assert len(hub.repositories["user/shown"].commits) == 2
    user(push.format(", existing_card='keep'"))
    assert hub.repositories["user/shown"].files["README.md"].endswith(b"by hand")
    user(push.format(", existing_card='replace'"))
    assert hub.repositories["user/shown"].files["README.md"].endswith(b"the card")


def test_foreign_code_in_a_repository_is_neither_joined_nor_run(hub, user, run):
    user("push_to_hub(model, tokenizer, 'mixed', card, token=token)")
    files, harm = hub.repositories["user/mixed"].files, run.parent / "harm"
    evil = f"from pathlib import Path\nPath({str(harm)!r}).touch()\n".encode()
    for name in ("custom_generate/generate.py", "adapter_config.json"):
        files[name] = evil if name.endswith(".py") else b"{}"
        message = user.refused("push_to_hub(model, tokenizer, 'mixed', card, existing_card='keep', token=token)")
        assert f"user/mixed has {name}, which makes transformers load foreign code or weights" in message
        assert "makes transformers load foreign" in user.refused("verify('user/mixed', model, tokenizer, token=token)")
        del files[name]
    name = "modeling_vanilla_transformer.py"
    own, files[name] = files[name], evil
    message = user.refused("verify('user/mixed', model, tokenizer, token=token)")
    assert f"user/mixed: {name} is neither this package's nor the model's own code" in message
    files[name] = own
    config = json.loads(files["tokenizer_config.json"])
    files["tokenizer_config.json"] = json.dumps(config | {"auto_map": {"AutoTokenizer": [None, "me/x--y.Z"]}}).encode()
    message = user.refused("verify('user/mixed', model, tokenizer, token=token)")
    assert "tokenizer_config.json has the auto_map 'me/x--y.Z', which is foreign code" in message
    assert len(hub.repositories["user/mixed"].commits) == 2 and not harm.exists()


def test_what_an_earlier_model_left_is_removed_by_the_push_or_found(hub, user):
    """transformers would read these with the new model's files, or, on an old index, other weights than are there."""
    push = "push_to_hub(model, tokenizer, 'left', card, existing_card='replace', token=token)"
    user(push)
    pushed = dict(hub.repositories["user/left"].files)
    left = {
        "special_tokens_map.json": b'{"bos_token": "</s>", "unk_token": "<pad>"}',
        "added_tokens.json": b'{"zebra": 50}',
        "model.safetensors.index.json": b'{"weight_map": {}}',
    }
    hub.repositories["user/left"].files.update(left, notes=b"by hand")
    message = user.refused("verify('user/left', model, tokenizer, token=token)")
    assert "AutoTokenizer with the package: " in message and "special tokens differ" in message
    user(push)
    assert hub.repositories["user/left"].files == pushed | {"notes": b"by hand"}
    user("verify('user/left', model, tokenizer, token=token)")


def test_an_upload_that_is_cut_once_goes_on(hub, user, run):
    hub.blobs.clear()
    hub.cut_uploads = 1
    assert user("answer = push_to_hub(model, tokenizer, 'cut-once', token=token)") == "user/cut-once"
    assert hub.cut_uploads == 0
    assert hub.repositories["user/cut-once"].files["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_a_push_that_fails_says_what_is_there(hub, user):
    hub.blobs.clear()
    push = "answer = push_to_hub(model, tokenizer, 'user/cut', card, token=token)"
    hub.cut_uploads = 99
    message = user.refused(push)
    assert message.startswith("the push to user/cut failed: Error while uploading 'model.safetensors' to the Hub. ")
    assert "; the repository was made, and is empty, since no commit was made; push again" in message
    assert hub.repositories["user/cut"].files.keys() == {".gitattributes"}
    hub.cut_uploads = 0

    hub.refuse_commits = 1
    message = user.refused(push)
    assert "failed: the Hub is down for maintenance; the repository is as it was before" in message
    assert hub.repositories["user/cut"].files.keys() == {".gitattributes"}
    first = len(hub.requests)
    assert user(push) == "user/cut"
    assert not [path for method, path, _ in hub.requests[first:] if method == "PUT"], "nothing is sent twice"
    assert hub.repositories["user/cut"].files.keys() == FILES | PIPELINE_FILES | {".gitattributes"}

    hub.lose_commits = 1
    message = user.refused("push_to_hub(model, tokenizer, 'user/lost', token=token)")
    commit = hub.repositories["user/lost"].commits[-1][0]
    assert f"yet the repository has a new commit, {commit}: the push most likely arrived" in message


def test_offline_is_named(run):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it; nothing was sent"):
        push_to_hub(*load(str(run), device="cpu"), "user/none", token="hf_any")


def test_a_stranger_translates_with_the_pipeline(hub, clients, user):
    user("push_to_hub(model, tokenizer, 'user/piped', token=token)")
    translations = clients["stranger"](f"""
from transformers import pipeline
pipe = pipeline("translation", model="user/piped", trust_remote_code=True, device="cpu")
assert type(pipe).__module__.startswith("transformers_modules.user.piped."), type(pipe)
pipe.model.push_to_hub("user/piped-on", token={TOKEN!r})
answer = pipe(["forty-two", "", "seven"], batch_size=2)
""")
    expected = user("""
from vanilla_transformer.inference.translate import translate
answer = [found.text for (found,) in translate(model, tokenizer, ["forty-two", "", "seven"])]
""")
    assert translations == [{"translation_text": text} for text in expected]
    config = json.loads(hub.repositories["user/piped-on"].files["config.json"])
    assert "custom_pipelines" not in config  # a model's own push has not the pipeline's code


# The method users know


def test_the_stock_methods_push_and_a_stranger_fine_tunes_and_pushes_again(hub, clients, user, run):
    user("model.push_to_hub('user/stock', token=token); tokenizer.push_to_hub('user/stock', token=token)")
    pushed = hub.repositories["user/stock"].files
    assert pushed.keys() == FILES | {".gitattributes"}
    assert b'"tokenizer_class": "PreTrainedTokenizerFast"' in pushed["tokenizer_config.json"]

    tuned = clients["stranger"](f"""
import runpy
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

def load_all(repo_id):
    loaded = [auto.from_pretrained(repo_id, trust_remote_code=True)
              for auto in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForSeq2SeqLM)]
    config, _, base, model = loaded
    for part in config, base, model:
        assert type(part).__module__.startswith("transformers_modules.user."), type(part)
        assert part.__class__.__name__.startswith("VanillaTransformer")
    return loaded

_, tokenizer, _, model = load_all("user/stock")
pairs = [tokenizer(text, text_target=text) for text in ("forty-two", "one", "thousand", "and")]
trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments(
        "tuned", max_steps=2, per_device_train_batch_size=2, save_strategy="no", report_to=[], use_cpu=True
    ),
    train_dataset=pairs,
    data_collator=DataCollatorForSeq2Seq(tokenizer, model),
)
trainer.train()
model.push_to_hub("user/tuned", token={TOKEN!r})
tokenizer.push_to_hub("user/tuned", token={TOKEN!r})

_, tokenizer, base, again = load_all("user/tuned")
inputs = tokenizer(["forty-two"], return_tensors="pt")
model.eval()
with torch.no_grad():
    ids = {{**inputs, "decoder_input_ids": inputs["input_ids"]}}
    assert torch.equal(again(**ids).logits, model(**ids).logits)
    assert torch.equal(base(**ids).last_hidden_state, model.model(**ids).last_hidden_state)
    assert torch.equal(again.generate(**inputs, num_beams=4), model.generate(**inputs, num_beams=4))
answer = runpy.run_path({weights.__file__!r})["weights_digest"](model)
""")
    assert hub.repositories["user/tuned"].files.keys() == FILES | {".gitattributes"}
    for name in CODE_FILES:
        assert hub.repositories["user/tuned"].files[name] == (run / name).read_bytes()
    loaded, untuned = user("""
from vanilla_transformer.hub.weights import weights_digest
answer = weights_digest(load("user/tuned")[0]), weights_digest(model)
""")
    assert loaded == tuned != untuned
