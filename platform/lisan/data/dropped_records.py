"""Says of each source how many of its records are not in the rows as they were, and why."""

from collections.abc import Mapping

from lisan.data.config import Overflow

WARN_RATIO = 0.1
SPELT = "spell a control token of the tokenizer, which is encoded as plain text"


def print_dropped_records(source: str, counts: Mapping[str, int], context_length: int, overflow: Overflow) -> None:
    """Print a line for records dropped, cut, or holding control tokens as text; warn where over a tenth is dropped or cut."""
    num, dropped, truncated = (counts[key] for key in ("items", "dropped", "truncated"))
    length = f"context_length={context_length:,} (packing.overflow={overflow})"
    reason = f"nothing is trained within {length}" if overflow is Overflow.truncate else f"longer than {length}"
    for count, what in (
        (dropped, f"dropped: {reason}"),
        (truncated, f"cut: longer than {length}"),
        (counts["spelt_controls"], SPELT),
    ):
        if count:
            print(f"  {source}: {count:,} of {num:,} records {what}", flush=True)
    if dropped + truncated > WARN_RATIO * num:
        other = ", set packing.overflow=truncate to keep their beginnings" if overflow is not Overflow.truncate else ""
        print(
            f"  warning: {(dropped + truncated) / num:.0%} of {source}'s records are dropped or cut; raise context_length{other}, "
            "or leave the source out",
            flush=True,
        )
