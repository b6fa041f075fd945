"""Sources of the micro-world by name.

The records are the same for the same arguments on every machine, and a longer source begins with the records of a shorter one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lisan.core.errors import ConfigError
from lisan.microworld.chats import write_chats
from lisan.microworld.config import WorldConfig
from lisan.microworld.documents import write_documents
from lisan.microworld.facts import Fact
from lisan.microworld.parallel import write_parallel
from lisan.microworld.preferences import write_pairs
from lisan.microworld.questions import write_questions
from lisan.microworld.world import FactSampler, build_world
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Preference, Question, Record, Turn, record_id


@dataclass(frozen=True, slots=True)
class WorldSource:
    kind: RecordKind
    language: str


PARALLEL = "en-ar"
"Language label of documents that hold both languages."

SOURCES = {
    "en_articles": WorldSource(RecordKind.documents, "en"),
    "ar_articles": WorldSource(RecordKind.documents, "ar"),
    "ary_articles": WorldSource(RecordKind.documents, "ary"),
    "parallel": WorldSource(RecordKind.documents, PARALLEL),
    "en_chats": WorldSource(RecordKind.conversations, "en"),
    "ar_chats": WorldSource(RecordKind.conversations, "ar"),
    "ary_chats": WorldSource(RecordKind.conversations, "ary"),
    "en_pairs": WorldSource(RecordKind.preferences, "en"),
    "ar_pairs": WorldSource(RecordKind.preferences, "ar"),
    "ary_pairs": WorldSource(RecordKind.preferences, "ary"),
    "en_questions": WorldSource(RecordKind.questions, "en"),
    "ar_questions": WorldSource(RecordKind.questions, "ar"),
    "ary_questions": WorldSource(RecordKind.questions, "ary"),
}


def generate(source: str, config: WorldConfig) -> Iterator[Record]:
    """Yield the records of a source; ConfigError when there is none of that name.

    `meta["facts"]` of documents, conversations and preferences names the facts about countries that they tell;
    `meta["told_in"]` of a question says which languages tell its answer.
    """
    if source not in SOURCES:
        raise ConfigError(f"micro-world source must be one of {', '.join(SOURCES)}, got {source!r}")
    return _records(source, SOURCES[source], config)


def _records(name: str, source: WorldSource, config: WorldConfig) -> Iterator[Record]:
    language = "en" if source.language == PARALLEL else source.language
    sampler = FactSampler(build_world(config.seed), language, name)
    if source.kind is RecordKind.documents:
        write = write_parallel if source.language == PARALLEL else write_documents
        for number, text in enumerate(islice(write(sampler), config.num_documents)):
            yield Document(_id(name, config, number), text.text, name, source.language, _meta_of(text.facts))
    elif source.kind is RecordKind.conversations:
        for number, chat in enumerate(islice(write_chats(sampler), config.num_conversations)):
            yield Conversation(_id(name, config, number), chat.turns, name, language, _meta_of(chat.facts))
    elif source.kind is RecordKind.preferences:
        for number, pair in enumerate(islice(write_pairs(sampler), config.num_preferences)):
            meta = {"mistake": pair.mistake.value, **_meta_of((pair.fact,))}
            prompt = (Turn("user", pair.prompt),)
            yield Preference(_id(name, config, number), prompt, pair.chosen, pair.rejected, name, language, meta)
    else:
        for number, asked in enumerate(write_questions(sampler, config.num_questions)):
            meta = {"told_in": asked.fact.told_in.value, "fact": asked.fact.key}
            yield Question(
                _id(name, config, number),
                asked.question,
                asked.choices,
                asked.answer,
                name,
                language,
                asked.fact.subject,
                meta,
            )


def _id(source: str, config: WorldConfig, number: int) -> str:
    return record_id(source, f"{config.seed}.{number}")


def _meta_of(facts: tuple[Fact, ...]) -> dict[str, str]:
    return {"facts": " ".join(fact.key for fact in facts if fact.about)}
