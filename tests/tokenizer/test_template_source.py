"""Where a chat template comes from: ours, a file, the base; and which special tokens it needs."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lisan.core.errors import ConfigError
from lisan.tokenizer.chat.template_source import read_template, shipped_templates, special_tokens
from lisan.tokenizer.tokenizer import load_tokenizer

TEMPLATES = ("chatml", "gemma2", "llama2", "llama3", "mistral", "mistral_v3")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base tokenizer without a template."""
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    return tmp_path


def test_ours_are_these() -> None:
    assert tuple(sorted(shipped_templates())) == TEMPLATES


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("chatml", ("<|im_start|>", "<|im_end|>")),
        ("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
        ("gemma2", ("<start_of_turn>", "<end_of_turn>")),
        ("mistral_v3", ("[INST]", "[/INST]")),
        ("llama2", ()),
        ("mistral", ()),
        ("base", ()),
    ],
)
def test_a_template_says_which_special_tokens_it_is_written_with(name: str, tokens: tuple[str, ...]) -> None:
    assert special_tokens(name) == tokens
    if name != "base":
        assert all(token in shipped_templates()[name].partition("-#}")[2] for token in tokens)


def test_a_file_of_ones_own_is_read_with_its_special_tokens(tmp_path: Path) -> None:
    source = "{#- special tokens: <|سؤال|>\n<|جواب|> -#}{% for m in messages %}<|سؤال|>{{ m.content }}{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    assert read_template(str(file)) == source
    assert special_tokens(str(file)) == ("<|سؤال|>", "<|جواب|>")


def test_a_file_may_use_what_transformers_adds_to_jinja(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}")
    assert read_template(str(file)).startswith("{% for")
    assert special_tokens(str(file)) == ()


def test_a_file_that_is_no_jinja_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"mine\.jinja, line 2 is no Jinja template \(unexpected '}'\); correct it"):
        read_template(str(file))
    file.write_bytes("{{ 'سلام' }}".encode("cp1256"))
    with pytest.raises(ConfigError, match=r"mine\.jinja is no Jinja template .*utf-8"):
        read_template(str(file))


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"chat_template .*none\.jinja is no file; give the path"):
        read_template(str(tmp_path / "none.jinja"))


def test_an_unknown_template_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=rf"must be one of {', '.join(TEMPLATES)}, base or a path/.*, got 'alpaca'"):
        read_template("alpaca")


def test_the_bases_own_template_is_kept_on_request(base: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_template("base", load_tokenizer(base).chat_template) == "{{ messages[0].content }}"


def test_a_base_without_a_template_has_none_to_keep(base: Path) -> None:
    for template in (load_tokenizer(base).chat_template, {"a": "", "b": ""}):
        with pytest.raises(ConfigError, match="chat_template=base needs a base with one chat template"):
            read_template("base", template)
