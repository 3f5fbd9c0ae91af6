"""Foreign text on a card."""

import pytest

from vanilla_transformer.hub.markdown import code_cell, command_block, escape, mask_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("checkpoint-3420", "checkpoint-3420"),
        ("test_2016, the first 1 of 1,000", "test_2016, the first 1 of 1,000"),
        ("a|b", r"a\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("# heading\n\n# another", r"\# heading \# another"),
        ("*_x_* `y` [a](b)", r"\*\_x\_\* \`y\` \[a\](b)"),
        ("a\u202eb\u200bc\x00d\u2028e", "a b c d e"),
        ("\\", r"\\"),
        ("한국어", "한국어"),
    ],
)
def test_escaped_text_is_only_text(text, shown):
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("data/train", "`data/train`"),
        ("a|b", r"`a\|b`"),
        ("``x`` <b>", r"\`\`x\`\` &lt;b&gt;"),
        ("a\nb", "`a b`"),
        ("", ""),
    ],
)
def test_a_code_cell_does_not_end_early(text, shown):
    assert code_cell(text) == shown


SECRETS = [
    "hf_abcdefghijKLMNOP1234567890",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0123456789_abcdef",
    "sk-abcdefghijklmnop1234567890",
    "sk-proj-abcdefghijklmnop1234567890",
    "sk-ant-api03-abcdefghijklmnop1234567890",
    "glpat-abcdefghijklmnopqrst",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdefghijkl",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_token_is_masked(secret):
    for text in (secret, f"see {secret}.", f"https://user:{secret}@host/x", f"--token={secret}"):
        assert secret not in mask_secrets(text) and "***" in mask_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf_en",
        "sk-en-europarl-v10",
        "task-specific-data-1234567890abcdef",
        "me/en-sk",
        "a_hf_b",
        "data/en-sk-OpenSubtitles2018/train",
        "data/sk-opensubtitles",
    ],
)
def test_other_words_are_not_masked(text):
    assert mask_secrets(text) == text


def test_a_command_shows_neither_paths_nor_secrets():
    block = command_block("train --output_dir /home/me/x --hub_token secret --my_api_key=secret --n 3 hf_abcdefgh1")
    lines = ["train", "--output_dir x", "--hub_token '***'", "'--my_api_key=***'", "--n 3 '***'"]
    assert block == "```sh\n{}\n```".format(" \\\n    ".join(lines))


def test_options_with_tokens_in_their_name_are_no_secrets():
    block = command_block("train --per_device_train_tokens 2048 --tokenizer_name x --hub-token secret --batch_tokens 9")
    assert "--per_device_train_tokens 2048" in block and "--tokenizer_name x" in block and "--batch_tokens 9" in block
    assert "secret" not in block


@pytest.mark.parametrize("word", ["```", "</code></pre><script>", "a\n```\n# heading", "$(x)"])
def test_a_command_is_one_block(word):
    import shlex

    block = command_block(shlex.join(["train", word]))
    assert "<script>" not in block and "\n# heading" not in block
    fences = sum(line.startswith("```") for line in block.splitlines())
    assert (fences, block.count("</pre>")) in ((2, 0), (0, 1))
