"""Layouts of conversations, preferences and questions: somebody asks, somebody answers.

In: a row's value and the source's config. Out: the fields of its records. Always: a conversation ends with an answer, a
preference's prompt ends with the user, a question's answer is one of its choices. `layouts` lists them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lisan.corpus.fields import BadRowError, DroppedRowError, Fields, filled, text_of
from lisan.corpus.records import ROLES, Turn
from lisan.corpus.sources import SourceConfig


def _exchange(prompt: str, answer: str) -> list[Fields]:
    return [{"turns": (Turn("user", prompt.strip()), Turn("assistant", answer.strip()))}]


_ALPACA_TEMPLATE = re.compile(
    r"\ABelow is an instruction that describes a task.*?### Instruction:\n(.*?)"
    r"(?:\n\n### Input:\n(.*?))?\n+### Response:\s*\Z",
    re.DOTALL,
)


def lay_prompt(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """One prompt and one response; an Alpaca template around the prompt is taken off."""
    prompt, response = filled(row, source, "prompt", "response")
    template = _ALPACA_TEMPLATE.match(prompt)
    if template is not None:
        prompt = "\n\n".join(part for part in template.groups() if part)
    return _exchange(prompt, response)


def lay_alpaca(row: Any, source: SourceConfig) -> Iterable[Fields]:
    instruction, output = filled(row, source, "instruction", "output")
    extra = text_of(row, source, "input", optional=True).strip()
    return _exchange(f"{instruction}\n\n{extra}" if extra else instruction, output)


def lay_seed_task(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """Self-Instruct seed tasks: an instruction and the first of its instances."""
    (instruction,) = filled(row, source, "instruction")
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRowError("no list in field instances")
    return lay_alpaca({**instances[0], "instruction": instruction}, source)


_ROLE_NAMES = {"human": "user", "gpt": "assistant", "prompter": "user", "bot": "assistant"} | dict(
    zip(ROLES, ROLES, strict=True)
)


def _turns(messages: Any, field: str) -> tuple[Turn, ...]:
    """Read OpenAI (`role`, `content`) or ShareGPT (`from`, `value`) messages."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise BadRowError(f"no list of messages in field {field}")
    turns = []
    for message in messages:
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if role not in _ROLE_NAMES or not isinstance(content, str):
            raise BadRowError(f"a message in field {field} has no known role and text, its role is {role!r}")
        turns.append(Turn(_ROLE_NAMES[role], content.strip()))
    return _join(turns)


def lay_messages(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """A list of messages in field `messages`, cut to what lies between the first question and the last answer."""
    name = source.fields.get("messages", "messages")
    turns = _begin_with_user(_turns(row.get(name) if isinstance(row, Mapping) else None, name))
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.content]
    if not answers:
        raise DroppedRowError("no answer")
    return [{"turns": turns[: answers[-1] + 1]}]


def _begin_with_user(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Leave out what the assistant says before anybody asked: a greeting replies to nothing."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(turn for index, turn in enumerate(turns) if index > first or turn.role != "assistant")


def lay_tree(row: Any, source: SourceConfig) -> Iterable[Fields]:  # noqa: ARG001  the signature of every layout
    """OpenAssistant trees: follow the best-ranked reply down from the prompt, and end with an answer."""
    message = row.get("prompt") if isinstance(row, Mapping) else None
    path = []
    while isinstance(message, Mapping):
        path.append({"role": message.get("role"), "content": message.get("text")})
        replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
        message = min(replies, key=lambda reply: reply.get("rank") or 0, default=None)
    return lay_messages({"messages": path}, SourceConfig())


def _preference(prompt: tuple[Turn, ...], chosen: str, rejected: str) -> list[Fields]:
    if not prompt or prompt[-1].role != "user":
        raise BadRowError("the prompt does not end with the user's turn")
    if not chosen.strip() or not rejected.strip():
        raise DroppedRowError("empty answer")
    if chosen.strip() == rejected.strip():
        raise DroppedRowError("same answers")
    return [{"prompt": prompt, "chosen": chosen.strip(), "rejected": rejected.strip()}]


def lay_preference(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """Text fields prompt, chosen, rejected."""
    prompt, chosen, rejected = filled(row, source, "prompt", "chosen", "rejected")
    return _preference((Turn("user", prompt.strip()),), chosen, rejected)


def lay_sharegpt_preference(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """Messages in field conversations, and one message each in chosen and rejected."""
    name = source.fields.get("conversations", "conversations")
    if not isinstance(row, Mapping):
        raise BadRowError(f"expected an object with a field {name}")
    (chosen,), (rejected,) = (_turns([row.get(side)], side) for side in ("chosen", "rejected"))
    return _preference(_begin_with_user(_turns(row.get(name), name)), chosen.content, rejected.content)


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _dialogue(text: str) -> tuple[Turn, ...]:
    parts = _SPEAKER.split(f"\n\n{text.strip()}")[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return _join(Turn("user" if speaker == "Human" else "assistant", said.strip()) for speaker, said in pairs)


def _join(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join what one side says in several turns in a row: no chat template renders that faithfully."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role and turn.role in ("user", "assistant"):
            turn = Turn(turn.role, f"{joined.pop().content}\n\n{turn.content}".strip())  # noqa: PLW2901
        joined.append(turn)
    return tuple(joined)


def lay_dialogue_preference(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """Two whole dialogues (HH-RLHF) that differ in the last answer only."""
    chosen, rejected = (_dialogue(text_of(row, source, side)) for side in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        raise DroppedRowError("dialogues differ before the last answer")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise DroppedRowError("no answer")
    return _preference(chosen[:-1], chosen[-1].content, rejected[-1].content)


def _question(question: str, choices: Sequence[str], answer: int, subject: str = "") -> list[Fields]:
    if not 0 <= answer < len(choices):
        raise BadRowError(f"answer {answer} is not one of {len(choices)} choices")
    if len(choices) < 2:
        raise DroppedRowError("fewer than two choices")
    return [{"question": question.strip(), "choices": tuple(choices), "answer": answer, "subject": subject}]


LETTERS = "ABCDE"


def _letter(text: str) -> int:
    letter = text.strip().upper()
    if len(letter) != 1 or letter not in LETTERS:
        raise BadRowError(f"answer {text!r} is not a letter A-{LETTERS[-1]}")
    return LETTERS.index(letter)


def lay_letters(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """MMLU: question, one column for each of A, B, C, D, and the letter of the answer."""
    question, *choices, answer = filled(row, source, "question", "A", "B", "C", "D", "answer")
    return _question(question, [choice.strip() for choice in choices], _letter(answer))


def lay_arabicmmlu(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """ArabicMMLU: up to five options, some empty, and a context that goes above the question."""
    question, answer, subject = filled(row, source, "Question", "Answer Key", "Subject")
    options = [text_of(row, source, f"Option {number}", optional=True).strip() for number in range(1, 6)]
    choices = options[: max((index + 1 for index, option in enumerate(options) if option), default=0)]
    if not all(choices):
        raise DroppedRowError("empty choice")
    context = text_of(row, source, "Context", optional=True).strip()
    return _question(f"{context}\n\n{question}" if context else question, choices, _letter(answer), subject)


TRUE_FALSE = ("صح", "خطأ")


def lay_true_false(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """ACVA: a statement that is right (صح) or wrong (خطأ); its topic stands in the id, before the dash."""
    question, answer = filled(row, source, "question", "answer")
    if answer.strip() not in TRUE_FALSE:
        raise BadRowError(f"answer {answer!r} is neither {TRUE_FALSE[0]} nor {TRUE_FALSE[1]}")
    topic = text_of(row, source, "id", optional=True).rpartition("-")[0]
    return _question(question, TRUE_FALSE, TRUE_FALSE.index(answer.strip()), topic)


def lay_choices(row: Any, source: SourceConfig) -> Iterable[Fields]:
    """A query, a list of choices and the index of the right one."""
    (question,) = filled(row, source, "query")
    choices, gold = row.get(source.fields.get("choices", "choices")), row.get(source.fields.get("gold", "gold"))
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise BadRowError("no list of texts in field choices")
    if not isinstance(gold, int):
        raise BadRowError(f"gold must be an index, got {json.dumps(gold, ensure_ascii=False)}")
    return _question(question.removeprefix("Question: "), choices, gold)
