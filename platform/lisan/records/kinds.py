"""The kinds of records."""

from enum import StrEnum


class RecordKind(StrEnum):
    """What a source yields; also the folder it is stored under."""

    documents = "documents"
    conversations = "conversations"
    preferences = "preferences"
    questions = "questions"
