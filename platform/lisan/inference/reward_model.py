"""Scores replies with a reward model: a sequence classifier with one label.

Renders each conversation with the reward model's own chat template, as in its training. Conversations longer than its context
lose their beginning, because the reply is at the end. Never run on a GPU so far.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lisan.cluster.precision import find_precision
from lisan.core.errors import ConfigError, DataError, first_line
from lisan.model.quiet import quiet_transformers
from lisan.records.records import Turn


def check_reward_model(folder: Path) -> None:
    """Refuse a local folder that is no reward model; hub ids are checked when loaded."""
    if not folder.is_dir():
        return
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    names = config.get("architectures") or ["no architecture"]
    if not names[0].endswith("ForSequenceClassification"):
        raise DataError(
            f"judge.path={folder} is {names[0]}, not a sequence classifier; name the folder of a reward model"
        )


def find_device(path: str, use_gpu: bool) -> str:
    """Return the device of this process; ConfigError when use_gpu is set and it sees no GPU."""
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError(
            f"cluster.use_gpu is true but this process, in which judge.path={path} scores, sees no GPU; start it where there is "
            "one, or choose a cluster preset without"
        )
    return "cuda" if use_gpu else "cpu"


class RewardModel:
    """A loaded reward model with its tokenizer."""

    def __init__(self, path: str, batch_size: int, use_gpu: bool) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        quiet_transformers()
        self.device = find_device(path, use_gpu)
        self.batch_size = batch_size
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right", truncation_side="left")
            dtype = find_precision(self.device).precision.dtype
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise DataError(f"judge.path={path} is not a reward model that transformers can load: {reason}") from error
        if model.config.num_labels != 1 or self.tokenizer.chat_template is None:
            raise DataError(
                f"judge.path={path} has {model.config.num_labels} labels and "
                f"{'a' if self.tokenizer.chat_template else 'no'} chat template; a reward model has one label and a template"
            )
        # Either limit may be missing; RoBERTa declares two positions more than it can use.
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.tokenizer.model_max_length = min(filter(None, (positions, self.tokenizer.model_max_length)))
        self.model = model.to(self.device).eval()
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id

    @torch.no_grad()
    def score(self, turns: Sequence[Turn], replies: Sequence[str]) -> list[float]:
        """Return one score per reply, any number."""
        before = [{"role": turn.role, "content": turn.content} for turn in turns]
        texts = [
            self.tokenizer.apply_chat_template([*before, {"role": "assistant", "content": reply}], tokenize=False)
            for reply in replies
        ]
        size = 1 if self.tokenizer.pad_token_id is None else self.batch_size
        scores: list[float] = []
        for start in range(0, len(texts), size):
            batch = self.tokenizer(
                texts[start : start + size],
                padding=size > 1,
                truncation=True,
                add_special_tokens=False,
                return_tensors="pt",
            ).to(self.device)
            scores += self.model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits[:, 0].tolist()
        return scores
