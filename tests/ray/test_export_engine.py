"""Quantised folders in the engine that serves them: vLLM loads int8 and int4 and gives the probabilities that we foresaw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, save_model

from lisan.export.parity import compute_logits
from lisan.export.quantise import read_quantised, write_quantised
from lisan.inference.vllm import multiplies_int8
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.model.load import load_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

SHAPE = ShapeConfig(
    num_layers=2, hidden_size=128, intermediate_size=256, num_heads=2, num_kv_heads=1, max_positions=128
)
ROWS = [list(range(1, 33)), list(range(200, 290)), [7, 7, 7, 300, 2, 11]]
ASK = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    rows = json.loads(sys.argv[2])
    engine = LLM(model=sys.argv[1], dtype="bfloat16", enforce_eager=True, skip_tokenizer_init=True, disable_log_stats=True,
                 max_model_len=128, kv_cache_memory_bytes=2**26)
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    found = engine.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
    logps = [[at[token].logprob for at, token in zip(one.prompt_logprobs[1:], row[1:])] for one, row in zip(found, rows)]
    print("ANSWER" + json.dumps(logps))
"""
"Asks a folder for the log-probability of every token of a row, given those before it."
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def ask_engine(folder: Path) -> list[list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), json.dumps(ROWS)],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line.removeprefix("ANSWER") for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers, done.stderr[-3000:]
    found: list[list[float]] = json.loads(answers[0])
    return found


def log_probabilities(logits: list[torch.Tensor]) -> torch.Tensor:
    parts = [
        one.log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:])[:, None]).flatten()
        for one, row in zip(logits, ROWS, strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize(("num_bits", "group"), [(8, 128), (4, 64)])
def test_the_engine_multiplies_with_the_weights_that_we_wrote(num_bits: int, group: int, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; make setup installs it")
    source, folder = tmp_path / "source", tmp_path / "quantised"
    folder.mkdir()
    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t", init_std=0.1), 384, {"eos_token_id": 0}, 0)
    save_model(model, source, torch.bfloat16)
    write_quantised(source, folder, num_bits, group)
    engine = torch.cat([torch.tensor(logps) for logps in ask_engine(folder)])
    foreseen, original = (
        log_probabilities(compute_logits(one, ROWS)) for one in (read_quantised(folder), load_model(str(source)).eval())
    )
    # bf16, in which the engine computes, moves a log-probability of this model by 0.03, rounding to 4 bits by 0.37.
    bound = 0.06 if num_bits == 4 or multiplies_int8() else 0.3
    assert (engine - foreseen).abs().mean() < bound
    if num_bits == 4:
        assert (engine - original).abs().mean() > 0.2
