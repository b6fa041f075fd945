"""The export stage: what each format holds, that it says what the model says, and what is refused before anything is written."""

import dataclasses
import json
from pathlib import Path
from shutil import copytree
from typing import Any
from unicodedata import normalize

import pytest
import torch
from tiny import SHAPE, generate_greedily, no_run, silent, train_config

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.export.config import ExportConfig, Format
from lisan.export.export_model import EXPORT, check_parity
from lisan.export.gguf_tokenizer import (
    COMPOSED,
    PRE_TYPES,
    SPACES,
    adds_space,
    check_normaliser,
    describe_tokenizer,
    pre_type,
)
from lisan.export.ollama import find_frame, write_modelfile
from lisan.export.parity import PROBES, Parity, compare_logits, compute_logits, probe_rows
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.load import load_model
from lisan.records.records import Turn
from lisan.tokenizer.chat.chat_template import encode_prompt
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.sentencepiece import PieceKind
from lisan.tokenizer.tokenizer import load_tokenizer
from lisan.train.options import Method, Quantisation, Rows, TuningConfig
from lisan.train.stages import CPT

AWKWARD = (
    "  a",
    "a  b\n\n c\n",
    "١٢٣ 123",
    "a\u064eb \u064ed",
    "ـــَـ",
    "«نعم»، قال: (لا)!",
    "it's IT'S",
    "x\r\ny",
    "½ ﷺ 🙂 中文",
)
"Texts at which pre-tokenizers differ."


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a base whose heads llama.cpp and vLLM take, and a model tuned over it with LoRA."""
    root = tmp_path_factory.mktemp("export")
    copytree(tiny_store.root.root, root, dirs_exist_ok=True)
    store = Store(str(root))
    shape = dataclasses.replace(SHAPE, hidden_size=64, intermediate_size=96)
    base = ModelConfig(shape=shape, tokenizer="tokenizer/tiny@v1", init_std=0.2)
    tuning = TuningConfig(method=Method.lora, lora=LoraConfig(rank=4))
    tuned = ModelConfig(path="model/base@v1")
    for config in (
        train_config(store, name="base", model=base, loop={"num_steps": 1}),
        train_config(store, name="tuned", model=tuned, tuning=tuning, loop={"num_steps": 2}),
    ):
        run_stage(CPT, config, no_run, silent)
    (store.location(Ref.parse("model/tuned@v1")) / "new_rows.json").write_bytes(b"[]")
    return store


def export(store: Store, name: str = "all", **changes: Any) -> Artifact:
    values = {"model": "model/tuned@v1", "int4_group": 32, "tolerances": {}, "formats": (Format.hf,)}
    config = ExportConfig(name=name, storage=StorageConfig(root=store.root.root), **{**values, **changes})
    return run_stage(EXPORT, config, no_run, silent)


@pytest.fixture(scope="module")
def exported(store: Store) -> Artifact:
    return export(store, formats=tuple(Format), tolerances={"int4": 2.0})


def folder(artifact: Artifact, form: str) -> Path:
    return artifact.location.local_folder() / form


def test_every_format_says_what_the_model_says(exported: Artifact) -> None:
    figures = exported.facts["formats"]
    assert list(figures) == list(Format)
    for form, found in figures.items():
        assert found["mean_kl"] <= found["tolerance"], form
        assert found["num_tokens"] == sum(map(len, probe_rows(load_tokenizer(folder(exported, "hf")), 128)))
    assert figures["hf"]["max_difference"] == 0
    assert figures["merged"]["max_difference"] < 1e-4
    assert figures["adapter"]["max_difference"] < 1e-3
    assert 0 < figures["gguf"]["mean_kl"] < figures["int8"]["mean_kl"] < figures["int4"]["mean_kl"]


def test_every_folder_says_where_it_comes_from(exported: Artifact, store: Store) -> None:
    model = store.open(Ref.parse("model/tuned@v1"))
    for form in Format:
        said = json.loads((folder(exported, form) / "export.json").read_bytes())
        assert (said["export"], said["format"], said["model"]) == ("export/all@v1", form, "model/tuned@v1")
        assert said["fingerprint"] == model.manifest["fingerprint"]
        assert said["parity"] == exported.facts["formats"][form]
    assert exported.manifest["parents"] == {"model/tuned@v1": model.manifest["fingerprint"]}


def test_what_lies_beside_the_weights_travels_along(exported: Artifact) -> None:
    beside = {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "new_rows.json",
    }
    for form in ("hf", "merged", "int8", "int4"):
        names = {path.name for path in folder(exported, form).iterdir()}
        assert beside | {"config.json", "model.safetensors"} <= names
        assert not names & {"manifest.json", "draft.json", "run.html", "adapter"}
    assert {path.name for path in folder(exported, "gguf").iterdir()} == {
        "all-float16.gguf",
        "Modelfile",
        "export.json",
        "new_rows.json",
    }


def test_an_adapter_names_its_base_and_no_machine(exported: Artifact) -> None:
    place = folder(exported, "adapter")
    assert json.loads((place / "adapter_config.json").read_bytes())["base_model_name_or_path"] == "model/base@v1"
    assert {path.name for path in place.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "export.json",
    }


def test_a_second_run_does_nothing(exported: Artifact, store: Store) -> None:
    again = export(store, formats=tuple(Format), tolerances={"int4": 2.0})
    assert again.manifest == exported.manifest


def test_a_folder_is_exported_as_an_artifact_is(exported: Artifact, store: Store) -> None:
    again = export(store, "again", model=str(folder(exported, "hf")), formats=(Format.gguf,))
    assert again.facts["formats"]["gguf"]["mean_kl"] == exported.facts["formats"]["gguf"]["mean_kl"]
    assert again.manifest["parents"] == {}


def test_an_export_that_is_too_far_off_is_refused_and_leaves_nothing(store: Store) -> None:
    with pytest.raises(
        ArtifactError, match=r"model/tuned@v1 as int4 is .* nats per token from the original, tolerance 1e-09"
    ):
        export(store, "far", formats=(Format.int4,), tolerances={"int4": 1e-9})
    assert store.find(Ref.parse("export/far@v1"), None, ()) is None
    nan = Parity(mean_kl=float("nan"), max_difference=0.0, agreement_ratio=1.0, num_tokens=1)
    with pytest.raises(ArtifactError, match="is nan nats"):
        check_parity(ExportConfig(name="t", model="c"), Format.hf, nan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"formats": ()}, "formats is empty; name some of hf, adapter"),
        ({"formats": (Format.hf, Format.hf)}, "formats names one twice: hf, hf"),
        ({"int4_group": 100}, r"int4_group must be one of 32, 64, 128, got 100"),
        ({"tolerances": {"int8": 1.0}}, r"tolerances\.int8 must be >= 0 and name one of formats \(hf\)"),
        (
            {"formats": (Format.int4,), "int4_group": 128},
            r"int4_group 128 does not divide the 64 inputs of .*; set int4_group=64",
        ),
        (
            {"model": "model/base@v1", "formats": (Format.adapter,)},
            r"model/base@v1 has no adapter/adapter_config\.json",
        ),
        (
            {"model": "model/base@v1", "formats": (Format.merged,)},
            r"not trained with tuning\.method=lora; hf is the whole model",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], said: str, store: Store) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        export(store, "refused", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5]},
    ],
)
def test_an_adapter_over_the_vocabulary_is_merged_or_nothing(
    change: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    copytree(store.open(Ref.parse("model/tuned@v1")).location.local_folder(), tmp_path / "m")
    file = tmp_path / "m" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | change))
    with pytest.raises(ConfigError, match=r"changes rows of the vocabulary .* export merged instead"):
        export(store, "rows", model=str(tmp_path / "m"), formats=(Format.adapter,))


def test_a_dora_is_merged_or_nothing(store: Store, tmp_path: Path) -> None:
    copytree(store.open(Ref.parse("model/tuned@v1")).location.local_folder(), tmp_path / "m")
    file = tmp_path / "m" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"use_dora": True}))
    with pytest.raises(ConfigError, match=r"is a DoRA, which vLLM does not load over a base; export merged"):
        export(store, "dora", model=str(tmp_path / "m"), formats=(Format.adapter,))


def test_an_adapter_with_trained_rows_is_merged_or_nothing(store: Store) -> None:
    tuning = TuningConfig(method=Method.lora, rows=Rows.all, lora=LoraConfig(rank=4))
    base = ModelConfig(path="model/base@v1")
    run_stage(CPT, train_config(store, name="rows", model=base, tuning=tuning, loop={"num_steps": 1}), no_run, silent)
    with pytest.raises(ConfigError, match=r"rows of the vocabulary that were trained .* export merged"):
        export(store, "rows", model="model/rows@v1", formats=(Format.adapter,))
    found = export(store, "rows", model="model/rows@v1", formats=(Format.merged, Format.hf))
    assert not list((folder(found, "merged")).glob("*.trained"))


def test_a_qlora_is_merged_into_the_base_that_it_was_trained_over(store: Store) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[qlora]'")
    tuning = TuningConfig(method=Method.lora, quantise_base=Quantisation.nf4, lora=LoraConfig(rank=4))
    base = ModelConfig(path="model/base@v1")
    run_stage(CPT, train_config(store, name="nf4", model=base, tuning=tuning, loop={"num_steps": 2}), no_run, silent)
    formats, bounds = (Format.hf, Format.merged, Format.adapter), {"adapter": 10.0}
    figures = export(store, "nf4", model="model/nf4@v1", formats=formats, tolerances=bounds).facts["formats"]
    assert figures["merged"]["mean_kl"] < 1e-6
    assert figures["adapter"]["mean_kl"] > 100 * max(figures["merged"]["mean_kl"], 1e-9)


def test_an_adapter_over_another_base_is_refused(store: Store, tmp_path: Path) -> None:
    copytree(store.root.root, tmp_path / "root")
    manifest = tmp_path / "root" / "model" / "base" / "v1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"fingerprint": "f" * 64}))
    with pytest.raises(ArtifactError, match=r"trained over another model/base@v1; export hf"):
        export(Store(str(tmp_path / "root")), "x", formats=(Format.merged,))


def test_a_folder_that_is_no_model_is_one_sentence(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a model folder: no config\.json"):
        export(store, "none", model=str(tmp_path))


def test_parity_is_nothing_for_equals_and_grows_with_the_difference() -> None:
    logits = [torch.randn(5, 11, generator=torch.Generator().manual_seed(0))]
    same = compare_logits(logits, [logits[0] + 3])
    assert same.mean_kl == pytest.approx(0, abs=1e-6)  # a constant changes no probability
    assert (same.agreement_ratio, same.num_tokens) == (1, 5)
    broken = compare_logits(logits, [torch.full((5, 11), float("nan"))])
    assert broken.mean_kl != broken.mean_kl, "what is not a number passes no gate"
    uniform = compare_logits(logits, [torch.zeros(5, 11)])
    entropy = torch.distributions.Categorical(logits=logits[0]).entropy().mean()
    assert uniform.mean_kl == pytest.approx(float(torch.log(torch.tensor(11.0)) - entropy), rel=1e-5)


def test_the_vocabulary_has_a_piece_for_every_row(tokenizer: Any, store: Store) -> None:
    source = store.open(Ref.parse("tokenizer/tiny@v1")).location.local_folder()
    said = describe_tokenizer(source, 640)
    pieces, kinds = said["ggml.tokens"], said["ggml.token_type"]
    assert len(pieces) == len(kinds) == len(set(pieces)) == 640
    assert (said["ggml.model"], said["ggml.pre"]) == ("gpt2", "qwen35")
    for index in range(len(tokenizer)):
        is_special = index in tokenizer.all_special_ids or index in tokenizer.added_tokens_decoder
        assert kinds[index] == (PieceKind.control if is_special else PieceKind.normal)
        assert pieces[index] == tokenizer.convert_ids_to_tokens(index)
    assert kinds[len(tokenizer) :] == [PieceKind.unused] * (640 - len(tokenizer))
    assert said["ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ConfigError, match="ids and the model 100 embedding rows"):
        describe_tokenizer(source, 100)


def byte_level(pattern: str | None, **model: Any) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": pattern is None}
    return {
        "model": model,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*([split] if pattern else []), bytes_]},
    }


def test_a_pre_tokenizer_has_llama_cpps_name_or_is_refused() -> None:
    assert pre_type(byte_level(None)) == "gpt-2"
    assert pre_type(byte_level(bpe.SPLIT_PATTERN)) == "qwen35"
    [(llama_3, _)] = [key for key, name in PRE_TYPES.items() if name == "llama-bpe"]
    assert pre_type(byte_level(llama_3, ignore_merges=True)) == "llama-bpe"
    assert pre_type(byte_level(llama_3)) == "smaug-bpe"
    with pytest.raises(
        ConfigError, match=r"llama\.cpp has no pre-tokenizer that cuts words .*'\\\\w\+', ignore_merges=False"
    ):
        pre_type(byte_level(r"\w+"))


def with_normaliser(store: Store, normaliser: dict[str, Any] | None, place: Path) -> Path:
    """Return a copy of the tuned model whose tokenizer changes text so."""
    copytree(store.open(Ref.parse("model/tuned@v1")).location.local_folder(), place)
    file = place / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"normalizer": normaliser}))
    return place


def test_a_tokenizer_that_changes_text_as_llama_cpp_does_not_is_refused(store: Store, tmp_path: Path) -> None:
    lower = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    source = with_normaliser(store, lower, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"changes text by Lowercase before it is cut, .* leave gguf out of formats"):
        export(store, "lower", model=str(source), formats=(Format.gguf,))


def test_a_sentencepiece_tokenizer_writes_spaces_and_no_more(tmp_path: Path) -> None:
    check_normaliser(
        {"normalizer": {"type": "Sequence", "normalizers": [COMPOSED, *SPACES]}}, (COMPOSED, *SPACES), tmp_path
    )
    trims = {"type": "Strip", "strip_left": True, "strip_right": True}
    with pytest.raises(ConfigError, match="changes text by Strip"):
        check_normaliser({"normalizer": trims}, (COMPOSED, *SPACES), tmp_path)


@pytest.mark.parametrize(
    ("normaliser", "is_said"),
    [({"type": "NFC"}, True), ({"type": "Sequence", "normalizers": []}, False), (None, False)],
)
def test_who_must_compose_the_text_is_told(
    normaliser: dict[str, Any] | None, is_said: bool, store: Store, tmp_path: Path, capsys: Any
) -> None:
    """Vocalised Arabic as it is typed: a shadda, then a vowel mark, which NFC puts the other way round."""
    source = with_normaliser(store, normaliser, tmp_path / "m")
    tokenizer = load_tokenizer(source)
    typed = "رب\u0651\u064e"
    assert is_said == (tokenizer.encode(typed) == tokenizer.encode(normalize("NFC", typed)))
    export(store, f"nfc-{tmp_path.name[-1]}", model=str(source), formats=(Format.gguf,))
    assert capsys.readouterr().out.count("put text into NFC before you send it") == is_said


def test_a_space_before_a_text_is_noticed() -> None:
    assert adds_space({"normalizer": {"type": "Prepend", "prepend": "▁"}, "pre_tokenizer": None})
    assert adds_space({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}})
    assert not adds_space({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}})


def test_the_modelfile_renders_what_the_template_renders(tokenizer: Any) -> None:
    frame = find_frame(tokenizer)
    assert frame is not None
    turns = [Turn("system", "س"), Turn("user", "ما هي؟"), Turn("assistant", "هي."), Turn("user", "?")]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert frame.render(turns) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = write_modelfile(tokenizer, "m.gguf", adds_bos=False)
    assert text.startswith("FROM ./m.gguf\n")
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text
    assert 'end }}<|im_start|>assistant\n"""' in text
    assert "PARAMETER stop <|im_end|>\n" in text


def test_the_modelfile_samples_and_stops_as_the_generation_config_says(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [other, end]}
    lines = write_modelfile(tokenizer, "m.gguf", adds_bos=False, generation=generation).splitlines()
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER stop <|im_end|>",
        "PARAMETER stop <|endoftext|>",
        "PARAMETER temperature 0.6",
        "PARAMETER top_p 0.9",
    ]


def test_a_template_that_does_more_than_frame_is_left_to_the_metadata(tokenizer: Any) -> None:
    """Such as one that shows the system message inside of the user's."""
    other = load_tokenizer(tokenizer.name_or_path)
    other.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ messages[0].content }}{{ m.content }}<|im_end|>"
        "{% elif m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert find_frame(other) is None
    assert "TEMPLATE" not in write_modelfile(other, "m.gguf", adds_bos=False)


def read_values(modelfile: str) -> dict[str, str]:
    """Read a Modelfile as ollama/parser does: a value ends at the first newline before which its quotes are closed."""
    values: dict[str, str] = {}
    text = ""
    for char in modelfile:
        text += char if char.isprintable() or char in "\t\r\n" else ""
        value = text.strip().partition(" ")[2].removeprefix("stop ").strip()
        is_open = value.startswith('"""') and not (len(value) >= 6 and value.endswith('"""'))
        is_open |= value.startswith('"') and not (len(value) >= 2 and value.endswith('"'))
        if char in "\r\n" and not is_open:
            width = 3 if value.startswith('"""') else 1 if value.startswith('"') else 0
            values[text.split()[0] + " stop" * (" stop " in text)] = value[width : len(value) - width]
            text = ""
    assert not text
    return values


def chat_with(tokenizer: Any, before_user: str, end: str) -> Any:
    """Return a tokenizer whose template puts these around what a user says."""
    other = load_tokenizer(tokenizer.name_or_path)
    other.add_special_tokens({"additional_special_tokens": [end]})
    other.eos_token = end
    other.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ "
        + repr(before_user)
        + " }}{% else %}<{{ m.role }}>{% endif %}"
        "{{ m.content }}{{ " + repr(end) + " }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return other


@pytest.mark.parametrize(
    ("before", "end"),
    [
        ('"', '"'),
        ('"""', '"end"'),
        ('he said "', '<"">'),
        ('"""user""" says: ', '"""'),
        ("\n\tuser:\n", " <end>"),
        ('"user"\n', "<the\nend>"),
    ],
)
def test_quotes_in_template_and_stop_arrive_in_ollama(tokenizer: Any, before: str, end: str) -> None:
    other = chat_with(tokenizer, before, end)
    frame = find_frame(other)
    assert frame is not None
    values = read_values(write_modelfile(other, "m.gguf", adds_bos=False))
    assert values["TEMPLATE"] == frame.to_go()
    assert values["PARAMETER stop"] == end


@pytest.mark.parametrize("before", ['"""\n', '"""  \r\n', "\u200fuser:", "{{ user }}", "user {"])
def test_a_template_that_a_modelfile_cannot_hold_is_left_to_the_metadata(tokenizer: Any, before: str) -> None:
    assert "TEMPLATE" not in write_modelfile(chat_with(tokenizer, before, "</s>"), "m.gguf", adds_bos=False)


@pytest.mark.parametrize("end", ['<"""\n>', "<\u200fend>"])
def test_a_stop_that_a_modelfile_cannot_hold_is_refused(tokenizer: Any, end: str) -> None:
    with pytest.raises(DataError, match="which no Modelfile can hold") as caught:
        write_modelfile(chat_with(tokenizer, "user: ", end), "m.gguf", adds_bos=False)
    assert "\n" not in str(caught.value)


def test_llama_cpp_reads_and_answers_as_transformers_does(exported: Artifact) -> None:
    """The same ids of every text, and the same greedy reply, token for token."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python"
    )
    place = folder(exported, "gguf") / "all-float16.gguf"
    engine = llama_cpp.Llama(model_path=str(place), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    tokenizer, model = load_tokenizer(folder(exported, "hf")), load_model(str(folder(exported, "hf"))).eval()
    for text in (*PROBES, *AWKWARD):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert engine.tokenize(text.encode(), add_bos=False, special=False) == ids, text
    for question in ("ما هي عاصمة المغرب؟", "What is the capital of Morocco?"):
        prompt = encode_prompt(tokenizer, (Turn("user", question),))
        [logits] = compute_logits(model, [prompt])
        engine.reset()
        engine.eval(prompt)
        assert torch.tensor(engine.scores[len(prompt) - 1]).allclose(logits[-1], atol=0.05)
        reply = generate_greedily(model, prompt, 12)
        theirs: list[int] = []
        while len(theirs) < len(reply):
            theirs.append(int(engine.scores[engine.n_tokens - 1].argmax()))
            engine.eval(theirs[-1:])
        assert theirs == reply
