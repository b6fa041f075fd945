"""The GGUF file in llama.cpp: it reads Arabic as the tokenizer does, and answers as the engine that serves the model.

Text is composed (NFC), as a tokenizer that composes would have it: llama.cpp composes none.
"""

import dataclasses
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from shutil import copytree
from typing import Any
from unicodedata import normalize

import pytest
from tiny import SHAPE, WORDS, generate_greedily, no_run, sentence, silent, train_config

from lisan.core.artifact import Store
from lisan.core.stage import StorageConfig, run_stage
from lisan.data.config import MixConfig
from lisan.export.config import ExportConfig, Format, GgufType
from lisan.export.export_model import EXPORT
from lisan.model.config import ModelConfig
from lisan.model.load import load_model
from lisan.records.records import Turn
from lisan.tokenizer.chat.chat_template import encode_prompt
from lisan.tokenizer.tokenizer import load_tokenizer
from lisan.train.stages import SFT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

MAX_TOKENS = 24
QUESTIONS = [
    "ما هي عاصمة المغرب؟",
    *(normalize("NFC", sentence("ar", "ar_chats", index, 0)) for index in (0, 1, 2, 200)),
    "What is the capital of Morocco?",
]
"Three that it was taught the answer of, and others."
ASK_ENGINE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    engine = LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, skip_tokenizer_init=True, disable_log_stats=True,
                 max_model_len=128, kv_cache_memory_bytes=2**26)
    asked = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), stop_token_ids=[int(sys.argv[4])], detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    found = engine.generate(prompts, asked, use_tqdm=False)
    print("ANSWER" + json.dumps([list(one.outputs[0].token_ids) for one in found]))
"""
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def exported(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught Arabic answers until it knows them, as a folder and as a GGUF file."""
    root = tmp_path_factory.mktemp("gguf")
    copytree(tiny_store.root.root, root, dirs_exist_ok=True)
    store = Store(str(root))
    shape = dataclasses.replace(SHAPE, hidden_size=64, intermediate_size=128)
    config = train_config(
        store,
        "conversations",
        name="taught",
        model=ModelConfig(shape=shape, tokenizer="tokenizer/tiny@v1", init_std=0.1),
        mix=MixConfig(weights={"ar_chats": 1.0}, max_epochs=1000),
        loop={"num_steps": 100, "log_every": 50, "checkpoint_every": 100},
    )
    run_stage(SFT, config, no_run, silent)
    asked = ExportConfig(
        name="taught",
        model="model/taught@v1",
        formats=(Format.hf, Format.gguf),
        gguf_type=GgufType.float32,
        storage=StorageConfig(root=store.root.root),
    )
    return run_stage(EXPORT, asked, no_run, silent).location.local_folder()


@pytest.fixture(scope="module")
def llama_cpp(exported: Path) -> Any:
    """llama.cpp's own server over the file, on one thread."""
    engine = pytest.importorskip("xllamacpp", reason="xllamacpp, a build of llama.cpp, is not installed")
    asked = engine.CommonParams()
    asked.model.path = str(exported / "gguf" / "taught-float32.gguf")
    asked.n_ctx, asked.n_parallel, asked.warmup, asked.verbosity = 128, 1, False, -1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.cache_type_k = asked.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    return engine.Server(asked)


def tokenize(server: Any, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    asked = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        ids: list[int] = json.load(answer)["tokens"]
    return ids


def ask_llama_cpp(server: Any, question: str) -> list[int]:
    """Return the ids of a reply; the file's own template and tokenizer make the prompt."""
    messages = [{"role": "user", "content": question}]
    said = server.handle_chat_completions(
        {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0, "logprobs": True}
    )
    return [token["id"] for token in said["choices"][0]["logprobs"]["content"]]


def ask_vllm(folder: Path, prompts: list[list[int]], end: int) -> list[list[int]]:
    pytest.importorskip("vllm", reason="vLLM is not installed; make setup installs it")
    done = subprocess.run(
        [sys.executable, "-c", ASK_ENGINE, str(folder), json.dumps(prompts), str(MAX_TOKENS), str(end)],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line.removeprefix("ANSWER") for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers, done.stderr[-3000:]
    found: list[list[int]] = json.loads(answers[0])
    return found


def generate(folder: Path, prompt: list[int]) -> list[int]:
    return generate_greedily(load_model(str(folder)).eval(), prompt, MAX_TOKENS)


def test_llama_cpp_cuts_composed_text_as_the_tokenizer_does(exported: Path, llama_cpp: Any) -> None:
    tokenizer = load_tokenizer(exported / "hf")
    marked = "وُلِدَ فِي المَدِينَةِ؛ «نعم»، ١٢٣ 123\n\n  a\u064eb ﷺ 🙂"
    for text in (*QUESTIONS, *WORDS["ar"], normalize("NFC", marked)):
        assert tokenize(llama_cpp, text) == tokenizer.encode(text, add_special_tokens=False), text


def test_the_same_greedy_answers_in_llama_cpp_vllm_and_transformers(exported: Path, llama_cpp: Any) -> None:
    folder = exported / "hf"
    tokenizer = load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, (Turn("user", question),)) for question in QUESTIONS]
    theirs = [ask_llama_cpp(llama_cpp, question) for question in QUESTIONS]
    assert theirs == [generate(folder, prompt) for prompt in prompts]
    assert theirs == ask_vllm(folder, prompts, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    taught = tokenizer.decode(theirs[1], skip_special_tokens=True)
    assert taught == normalize("NFC", sentence("ar", "ar_chats", 0, 1))
