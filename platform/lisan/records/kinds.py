"""Kinds of records."""

from enum import StrEnum


class RecordKind(StrEnum):
    """Kind of the records of a source; also the name of their folder."""

    documents = "documents"
    conversations = "conversations"
    preferences = "preferences"
    questions = "questions"
