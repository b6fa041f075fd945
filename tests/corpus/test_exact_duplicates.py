import random

import pyarrow as pa

from lisan.corpus.dedup.exact import KEYS, document_key, find_removals, keep_survivors


def table(*documents: tuple[int, int, str]) -> pa.Table:
    rows = [
        {"key_high": 7, "key_low": key, "length": length, "id": identity, "task": 0, "row": row}
        for row, (key, length, identity) in enumerate(documents)
    ]
    return pa.Table.from_pylist(rows, schema=KEYS)


def removed(keys: pa.Table) -> list[int]:
    return sorted(find_removals(keys)["row"].to_pylist())


def test_the_longest_document_of_a_key_stays() -> None:
    assert removed(table((1, 5, "a"), (1, 9, "b"), (1, 7, "c"), (2, 1, "d"))) == [0, 2]


def test_of_equally_long_documents_the_lowest_id_stays() -> None:
    assert removed(table((1, 5, "c"), (1, 5, "a"), (1, 5, "b"))) == [0, 2]


def test_both_halves_of_the_key_must_agree() -> None:
    keys = table((1, 5, "a"), (1, 5, "b"))
    other = keys.set_column(0, "key_high", pa.array([7, 8], pa.uint64()))
    assert removed(other) == []


def test_no_document_gives_no_removal() -> None:
    assert removed(KEYS.empty_table()) == []
    assert keep_survivors(KEYS.empty_table()).num_rows == 0


def test_applying_the_rule_to_parts_first_gives_the_same_survivors() -> None:
    draw = random.Random(1)
    keys = table(*((draw.randrange(20), draw.randrange(4), f"{draw.random()}") for _ in range(300)))
    whole = sorted(keep_survivors(keys)["row"].to_pylist())
    parts = pa.concat_tables([keep_survivors(keys.slice(start, 70)) for start in range(0, 300, 70)])
    assert sorted(keep_survivors(parts)["row"].to_pylist()) == whole
    assert sorted(whole + removed(keys)) == list(range(300))


def test_documents_of_symbols_alone_are_compared_as_they_are() -> None:
    assert document_key("!!!") != document_key("???")
    assert document_key("Ahmed!") == document_key("ahmed")
