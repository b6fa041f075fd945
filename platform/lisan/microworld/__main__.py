"""Print samples of the micro-world: `python -m lisan.microworld en_articles -n 3`."""

import argparse
from itertools import islice

from lisan.core.command_line.run_job import sentences
from lisan.microworld.config import WorldConfig
from lisan.microworld.sources import SOURCES, generate
from lisan.records.records import Conversation, Document, Preference, Question, Record


def main() -> None:
    parser = argparse.ArgumentParser("python -m lisan.microworld", description="Print samples of a source.")
    parser.add_argument("source", help=f"one of {', '.join(SOURCES)}")
    parser.add_argument("-n", type=int, default=3, help="number of records (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with sentences():
        records = generate(arguments.source, WorldConfig(seed=arguments.seed))
        print("\n\n---\n\n".join(map(show, islice(records, arguments.n))))


def show(record: Record) -> str:
    """Write a record for a human reader."""
    match record:
        case Document():
            return record.text
        case Conversation():
            return "\n".join(f"{turn.role}: {turn.content}" for turn in record.turns)
        case Preference():
            return f"user: {record.prompt[-1].content}\nchosen: {record.chosen}\nrejected: {record.rejected}"
        case Question():
            marks = ("*" if index == record.answer else "-" for index in range(len(record.choices)))
            choices = "\n".join(f"{mark} {choice}" for mark, choice in zip(marks, record.choices, strict=True))
            return f"{record.question}\n{choices}\n[{record.subject}, told in: {record.meta['told_in']}]"


if __name__ == "__main__":
    main()
