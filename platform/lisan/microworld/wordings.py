"""Sentence templates per topic and language.

`{slot}` is replaced; `[a|b]` takes a if the subject is grammatically masculine and b otherwise; `<a|b>` does the same for
the value. A held-out wording is used in questions only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SUBJECT = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_VALUE = re.compile(r"<([^|>]*)\|([^>]*)>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """The wordings of one kind of fact in one language."""

    statements: tuple[str, ...]
    "Full sentences of documents."
    continuations: tuple[str, ...] = ()
    "Sentences that lean on the one before for their subject."
    quiz: tuple[str, ...]
    "Questions as documents ask them."
    asks: tuple[str, ...]
    "Questions as users ask them."
    follow_ups: tuple[str, ...] = ()
    "Questions of users that lean on the one before."
    answers: tuple[str, ...]
    "Full sentences of assistants."
    held_out: tuple[str, ...]
    "Questions of the evaluation alone."


@dataclass(frozen=True, kw_only=True, slots=True)
class Wordings:
    """All templates of one language."""

    topics: Mapping[str, Topic]
    openings: tuple[str, ...]
    "First sentences of an article about {country}."
    closings: tuple[str, ...]
    recaps: tuple[str, ...]
    "Ways to repeat a {sentence}."
    both: Mapping[str, tuple[str, ...]]
    "Per attribute: sentences about two countries {a} and {b} that share a {value}."
    contrasts: tuple[str, ...]
    "Ways to put two sentences against each other; {first} has no full stop."
    list_heads: Mapping[str, tuple[str, ...]]
    "Per attribute: the first line of a list."
    list_lines: tuple[str, ...]
    "Lines of a list: {country} and {value}."
    quiz_layouts: tuple[str, ...]
    "One item of a quiz: {question} and {answer}."
    dialogue_openings: tuple[str, ...]
    "First line of {a} in a dialogue with {b}."
    thanks: tuple[str, ...]
    names: tuple[str, ...]
    family_lists: tuple[str, ...]
    "Sentences that list {things} of a family."
    odd_one_out: tuple[str, ...]
    "Short texts in which {odd} does not belong to {family_plural} like {things}."
    sequences: tuple[str, ...]
    "Texts that list the {words} of a week or a year in order; {kind} is their name."
    sequence_kinds: Mapping[str, str]
    stories: tuple[str, ...]
    "Word problems: {name} has {first}, gets {second}, and now has {total} {things}."
    conjunction: str
    comma: str
    "Between bare words, as in a list on a line of its own."
    separator: str
    "Between words that a sentence lists, all but the last; Arabic repeats its conjunction."
    greetings: tuple[tuple[str, str], ...]
    "Greeting of the user, and the reply."
    goodbyes: tuple[tuple[str, str], ...]
    brief: tuple[str, ...]
    "Request of a user for the bare answer."
    say_in: Mapping[str, tuple[str, ...]]
    "Per target language: how a user asks to hear the last answer in it."
    word_in: Mapping[str, tuple[str, ...]]
    "Per target language: how a user asks for a {word}."


def fill_template(
    template: str, slots: Mapping[str, str], *, subject_is_masculine: bool, value_is_masculine: bool
) -> str:
    """Fill one template; the first letter of the result is a capital one where the script has any."""
    if "[" in template:
        template = _SUBJECT.sub(r"\1" if subject_is_masculine else r"\2", template)
    if "<" in template:
        template = _VALUE.sub(r"\1" if value_is_masculine else r"\2", template)
    return capitalise(template.format_map(slots))


def in_sentence(text: str, template: str) -> str:
    """Undo the capital letter of a filled template that goes on inside a sentence, unless a name stands first."""
    return text if template.startswith("{") and not text.startswith("The ") else text[:1].lower() + text[1:]


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def join_words(words: list[str], wordings: Wordings) -> str:
    """a, b and c; in Arabic أ وب وج."""
    return f"{wordings.separator.join(words[:-1])}{wordings.conjunction}{words[-1]}"
