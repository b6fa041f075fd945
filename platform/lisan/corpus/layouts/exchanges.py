"""Layouts of conversations, preferences and questions.

A conversation ends with an answer, the prompt of a preference with the user's turn, and the answer of a question is one of
its choices.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lisan.corpus.config import SourceConfig
from lisan.corpus.layouts.fields import Fields, field_of, filled, text_of
from lisan.corpus.layouts.messages import add_system, begin_with_user, is_invisible, join_turns, read_turns
from lisan.corpus.sources.lines import BadRowError, DroppedRowError
from lisan.records.records import Turn


def _exchange(row: object, source: SourceConfig, prompt: str, answer: str) -> list[Fields]:
    """One prompt and its answer, after the `system` text and the `history` of (prompt, answer) pairs that a row may have."""
    earlier = [
        Turn(role, text.strip()) for pair in _history(row, source) for role, text in zip(ASKING, pair, strict=True)
    ]
    turns = (*earlier, Turn("user", prompt.strip()), Turn("assistant", answer.strip()))
    return [{"turns": add_system(turns, text_of(row, source, "system", optional=True))}]


ASKING = ("user", "assistant")


def _history(row: object, source: SourceConfig) -> list[Any]:
    name = source.fields.get("history", "history")
    pairs = field_of(row, source, "history", optional=True) or []
    is_pair = (
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs
    )
    if not isinstance(pairs, list) or not all(is_pair):
        raise BadRowError(f"field {name} is no list of pairs of texts, [[prompt, answer], ...]")
    return pairs


_ALPACA_TEMPLATE = re.compile(
    r"\ABelow is an instruction that describes a task.*?### Instruction:\n(.*?)"
    r"(?:\n\n### Input:\n(.*?))?\n+### Response:\s*\Z",
    re.DOTALL,
)


def parse_prompt(row: object, source: SourceConfig) -> Iterable[Fields]:
    """One prompt and one response; an Alpaca template around the prompt is taken off."""
    prompt, response = filled(row, source, "prompt", "response")
    template = _ALPACA_TEMPLATE.match(prompt)
    if template is not None:
        prompt = "\n\n".join(part for part in template.groups() if part)
    return _exchange(row, source, prompt, response)


def parse_alpaca(row: object, source: SourceConfig) -> Iterable[Fields]:
    instruction, output = filled(row, source, "instruction", "output")
    extra = text_of(row, source, "input", optional=True).strip()
    return _exchange(row, source, f"{instruction}\n\n{extra}" if extra else instruction, output)


def parse_seed_task(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Self-Instruct seed tasks: an instruction and the first of its instances."""
    (instruction,) = filled(row, source, "instruction")
    instances = field_of(row, source, "instances", optional=True)
    if not isinstance(instances, list) or not instances:
        raise BadRowError("no list in field instances")
    return parse_alpaca({**instances[0], "instruction": instruction}, source)


def parse_messages(row: object, source: SourceConfig) -> Iterable[Fields]:
    """A list of messages in field `messages`, from the first question to the last trained answer."""
    name, notes = source.fields.get("messages", "messages"), list[str]()
    turns = begin_with_user(read_turns(field_of(row, source, "messages"), name, notes), notes)
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.content]
    trained = [index for index in answers if turns[index].is_trained]
    if not trained:
        raise DroppedRowError("no answer with a weight" if answers else "no answer")
    notes += ["what follows the last answer left out"] * (len(turns) > trained[-1] + 1)
    turns = add_system(turns[: trained[-1] + 1], text_of(row, source, "system", optional=True))
    return [{"turns": turns, "notes": notes}]


def parse_tree(row: object, source: SourceConfig) -> Iterable[Fields]:  # noqa: ARG001  the signature of every layout
    """OpenAssistant trees: follow the best-ranked reply down from the prompt, and end with an answer."""
    message = row.get("prompt") if isinstance(row, Mapping) else None
    path = []
    while isinstance(message, Mapping):
        path.append({"role": message.get("role"), "content": message.get("text")})
        replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
        message = min(replies, key=lambda reply: reply.get("rank") or 0, default=None)
    return parse_messages({"messages": path}, SourceConfig())


def parse_squad(row: object, source: SourceConfig) -> Iterable[Fields]:
    """SQuAD: an article with paragraphs, or one flat question; the context and the question, then the first answer."""
    paragraphs = field_of(row, source, "paragraphs", optional=True)
    asked = [(row, row)] if paragraphs is None else [(part, item) for part in paragraphs for item in _questions(part)]
    for paragraph, item in asked:
        context, question = *filled(paragraph, source, "context"), *filled(item, source, "question")
        answer = next(iter(_answers(field_of(item, source, "answers"))), None)
        if answer is None:
            yield {"notes": ["a question without answer left out"]}
        else:
            yield {
                "turns": (Turn("user", f"{context.strip()}\n\n{question.strip()}"), Turn("assistant", answer.strip()))
            }


def _questions(paragraph: object) -> list[Any]:
    questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
    if not isinstance(questions, list):
        raise BadRowError("a paragraph has no list of questions in field qas")
    return questions


def _answers(value: object) -> list[str]:
    """Return the texts of SQuAD's answers, [{"text": ...}, ...], or of the form that `datasets` gives them, {"text": [...]}."""
    answers = [{"text": text} for text in value.get("text") or []] if isinstance(value, Mapping) else value
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise BadRowError("field answers is no list of objects with a text")
    return [answer["text"] for answer in answers if isinstance(answer.get("text"), str) and answer["text"].strip()]


def _preference(prompt: tuple[Turn, ...], chosen: str, rejected: str, notes: Sequence[str] = ()) -> list[Fields]:
    if not prompt or prompt[-1].role != "user":
        raise BadRowError("the prompt does not end with the user's turn")
    if is_invisible(chosen) or is_invisible(rejected):
        raise DroppedRowError("empty answer")
    if chosen.strip() == rejected.strip():
        raise DroppedRowError("same answers")
    return [{"prompt": prompt, "chosen": chosen.strip(), "rejected": rejected.strip(), "notes": notes}]


def parse_preference(row: object, source: SourceConfig) -> Iterable[Fields]:
    """`prompt`, `chosen` and `rejected`, each a text or messages; chosen and rejected may hold the prompt too (UltraFeedback)."""
    notes = list[str]()
    prompt = _turns_of(row, source, "prompt", "user", notes)
    sides = [_turns_of(row, source, side, "assistant", notes) for side in ("chosen", "rejected")]
    if not all(sides) or any(side[-1].role != "assistant" for side in sides):
        raise DroppedRowError("no answer")
    before, other = (side[:-1] for side in sides)
    if before != other:
        raise DroppedRowError("dialogues differ before the last answer")
    if not all(turn in before for turn in prompt):
        before = (*prompt, *before)
    prompt = begin_with_user(join_turns(before), notes)
    prompt = add_system(prompt, text_of(row, source, "system", optional=True))
    return _preference(prompt, sides[0][-1].content, sides[1][-1].content, notes)


def _turns_of(row: object, source: SourceConfig, name: str, role: str, notes: list[str]) -> tuple[Turn, ...]:
    """Return a field that is a text, one message or a list of messages as turns; none where a prompt is missing."""
    value = field_of(row, source, name, optional=name == "prompt")
    if value is None or isinstance(value, str):
        return (Turn(role, value.strip()),) if value and value.strip() else ()
    return read_turns([value] if isinstance(value, Mapping) else value, source.fields.get(name, name), notes)


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _dialogue(text: str) -> tuple[Turn, ...]:
    parts = _SPEAKER.split(f"\n\n{text.strip()}")[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return join_turns(Turn("user" if speaker == "Human" else "assistant", said.strip()) for speaker, said in pairs)


def parse_dialogue_preference(row: object, source: SourceConfig) -> Iterable[Fields]:
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


def parse_letters(row: object, source: SourceConfig) -> Iterable[Fields]:
    """MMLU: question, one column for each of A, B, C, D, and the letter of the answer."""
    question, *choices, answer = filled(row, source, "question", "A", "B", "C", "D", "answer")
    return _question(question, [choice.strip() for choice in choices], _letter(answer))


def parse_arabicmmlu(row: object, source: SourceConfig) -> Iterable[Fields]:
    """ArabicMMLU: up to five options, some empty, and a context that goes above the question."""
    question, answer, subject = filled(row, source, "Question", "Answer Key", "Subject")
    options = [text_of(row, source, f"Option {number}", optional=True).strip() for number in range(1, 6)]
    choices = options[: max((index + 1 for index, option in enumerate(options) if option), default=0)]
    if not all(choices):
        raise DroppedRowError("empty choice")
    context = text_of(row, source, "Context", optional=True).strip()
    return _question(f"{context}\n\n{question}" if context else question, choices, _letter(answer), subject)


TRUE_FALSE = ("صح", "خطأ")


def parse_true_false(row: object, source: SourceConfig) -> Iterable[Fields]:
    """ACVA: a statement that is right (صح) or wrong (خطأ); the id begins with its topic and a dash."""
    question, answer = filled(row, source, "question", "answer")
    if answer.strip() not in TRUE_FALSE:
        raise BadRowError(f"answer {answer!r} is neither {TRUE_FALSE[0]} nor {TRUE_FALSE[1]}")
    topic = text_of(row, source, "id", optional=True).rpartition("-")[0]
    return _question(question, TRUE_FALSE, TRUE_FALSE.index(answer.strip()), topic)


def parse_choices(row: object, source: SourceConfig) -> Iterable[Fields]:
    """A query, a list of choices and the index of the right one."""
    (question,) = filled(row, source, "query")
    choices, gold = field_of(row, source, "choices"), field_of(row, source, "gold")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise BadRowError("no list of texts in field choices")
    if not isinstance(gold, int) or isinstance(gold, bool):
        raise BadRowError(f"gold must be the index of a choice, 0, 1, ..., got {json.dumps(gold, ensure_ascii=False)}")
    return _question(question.removeprefix("Question: "), choices, gold)


def parse_belebele(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Belebele: a passage above its question, four choices and the number of the right one, counted from 1."""
    passage, question, *choices = filled(
        row, source, "flores_passage", "question", *(f"mc_answer{n}" for n in range(1, 5))
    )
    number = str(field_of(row, source, "correct_answer_num"))
    if number not in ("1", "2", "3", "4"):
        raise BadRowError(f"correct_answer_num must be 1, 2, 3 or 4, got {number}")
    return _question(f"{passage.strip()}\n\n{question}", [choice.strip() for choice in choices], int(number) - 1)
