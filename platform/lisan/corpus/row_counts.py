"""Counts rows of each source for the manifest, prints them, and writes quarantine. Every row that is not kept is counted."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lisan.core.errors import DataError
from lisan.core.storage import Location
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.microworld.sources import SOURCES

DUPLICATES_LIMIT, FAULTS_LIMIT = 0.5, 0.1
"Shares of a source's documents or rows above which a warning is printed."
PAGE_LINE_WORDS = 15
"A line of a printed page has about ten words."
READ_COUNTS = ("read", "quarantined", "changed", "flagged", "records")
Counts = dict[str, Any]


def sum_read(sources: Mapping[str, SourceConfig], read: Sequence[Counts]) -> dict[str, Counts]:
    """Add up the counts of read tasks by source; DataError if a source has no records left."""
    by_source: dict[str, Counts] = {}
    for name, source in sources.items():
        mine = [task for task in read if task["source"] == name]
        counts = {key: sum(task.get(key, 0) for task in mine) for key in READ_COUNTS}
        dropped, notes, unused = (
            dict(sum((Counter(task[key]) for task in mine), Counter[str]())) for key in ("dropped", "notes", "unused")
        )
        first = _first_fault(mine)
        if not counts.pop("records"):
            raise DataError(
                f"sources.{name} has 0 records left of {counts['read']} rows: {counts['quarantined']} quarantined, "
                f"dropped {dropped}{first}; correct the source, or leave it out with ~sources.{name}"
            )
        damaged = [sentence for task in mine for sentence in task["damaged"]]
        _print_faults(name, counts["quarantined"], first, damaged)
        by_source[name] = {
            "kind": source.kind.value,
            "language": _language_of(source),
            "licence": source.licence,
            **counts,
            "damaged_files": len(damaged),
            "dropped": dropped,
            "notes": notes,
            "unused": unused,
            "duplicates": 0,
            "kept": 0,
            "bytes": 0,
            "words": 0,
            "splits": {},
        }
    return by_source


def _language_of(source: SourceConfig) -> str:
    if source.format is SourceFormat.microworld:
        return SOURCES[source.world].language
    return f"{source.language}-{source.pair_language}" if source.pair_language else source.language


def _first_fault(read: Sequence[Counts]) -> str:
    """Return a clause about the first fault of a source, or ''."""
    for fault in (fault for task in read for fault in task["faults"]):
        line = fault["line"] + _num_lines_before(fault, _num_lines(read))
        return f"; first: {fault['file']} line {line}: {fault['reason']}"
    return ""


def _num_lines(read: Sequence[Counts]) -> dict[tuple[str, int], int]:
    """Return the number of lines of each file range by file and start."""
    return {(path, start): num for task in read for path, start, num in task["ranges"]}


def _num_lines_before(fault: Counts, num_lines: Mapping[tuple[str, int], int]) -> int:
    """Return the number of lines of the fault's file in earlier ranges; the line of a fault counts from its range."""
    return sum(num for (path, start), num in num_lines.items() if path == fault["file"] and start < fault["start"])


def _print_faults(name: str, num_faults: int, first: str, damaged: Sequence[str]) -> None:
    for sentence in damaged:
        print(f"  warning: {name} has lost the rest of {sentence}; fetch the file again", flush=True)
    if num_faults > len(damaged):
        print(f"  {name}: {num_faults:,} rows are in quarantine/{name}.jsonl{first}", flush=True)


def write_quarantine(read: Sequence[Counts], staging: Location, target: Location) -> None:
    """Write `quarantine/<source>.jsonl`, line numbers counted from the start of each file."""
    lines_of: dict[str, list[str]] = defaultdict(list)
    num_lines = _num_lines(read)
    for task in read:
        path = staging / task["source"] / f"{task['index']:05d}.faults.jsonl"
        if not task["faults"]:
            continue
        for fault in map(json.loads, path.read_bytes().splitlines()):
            fault["line"] += _num_lines_before(fault, num_lines)
            del fault["start"]
            lines_of[task["source"]].append(json.dumps(fault, ensure_ascii=False) + "\n")
    for name, lines in lines_of.items():
        (target / "quarantine" / f"{name}.jsonl").write_bytes("".join(lines).encode())


def report(name: str, source: SourceConfig, counts: Counts) -> None:
    """Print the counts of a source, and warn of heavy losses; DataError if no record is left."""
    if not counts["kept"]:
        raise DataError(
            f"sources.{name} has 0 records left: each of its {counts['duplicates']} documents is in another source "
            f"too; leave it out with ~sources.{name}, or set dedup.exact=false"
        )
    dropped, megabytes = sum(counts["dropped"].values()), counts["bytes"] / 1e6
    lost = f"{counts['quarantined']} quarantined, {dropped} dropped, {counts['duplicates']} duplicates"
    kept = f"{counts['kept']:,} {counts['kind']}, {megabytes:.1f} MB"
    print(f"  {name}: {counts['read']:,} rows, {kept} ({lost})", flush=True)
    for title, found in (("dropped: ", "dropped"), ("", "notes"), ("fields not used: ", "unused")):
        if counts[found]:
            ranked = sorted(counts[found].items(), key=lambda item: -item[1])
            listed = ", ".join(f"{what} ({times:,})" for what, times in ranked)
            print(f"  {name}: {title}{listed}", flush=True)
    _warn(name, counts)
    _advise(name, source, counts)


def _warn(name: str, counts: Counts) -> None:
    made = counts["kept"] + counts["duplicates"]
    for ratio, limit, what in (
        (counts["duplicates"] / made, DUPLICATES_LIMIT, "documents are duplicates"),
        (counts["quarantined"] / counts["read"], FAULTS_LIMIT, f"rows are in quarantine/{name}.jsonl"),
        (counts["flagged"] / made, FAULTS_LIMIT, f"documents are not in the script of {counts['language']}"),
    ):
        if ratio > limit:
            print(f"  warning: {ratio:.0%} of {name}'s {what}; look at them before training", flush=True)


def _advise(name: str, source: SourceConfig, counts: Counts) -> None:
    """Suggest another `unit` if the lines of a text file are lines of a printed page."""
    words = counts["words"] / counts["kept"]
    if source.format is SourceFormat.text and source.unit is TextUnit.line and words < PAGE_LINE_WORDS:
        print(
            f"  {name}: every line is a document, of {words:.0f} words on average; for books and articles set "
            f"sources.{name}.unit=file, or unit=block for the text between blank lines",
            flush=True,
        )
