"""Makes preferences of judged answers: the best answer to a prompt as chosen, the worst as rejected.

Chosen and rejected differ in score, by `min_gap` at least. Prompts without a pair are counted by reason.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from lisan.core.artifact import Draft
from lisan.core.errors import DataError
from lisan.core.parts import part_path
from lisan.corpus.write_shards import ShardWriter
from lisan.evaluate.metrics import mean
from lisan.inference.answers import AnsweredPrompt, read_answers
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS, Preference, record_id, to_table

REFUSED, TOO_FEW, TIE, SMALL_GAP = "refused", "too_few", "tie", "small_gap"


def make_pair(answered: AnsweredPrompt, min_gap: float) -> Preference | str:
    """Return the pair, or the reason for none: refused, too_few (answers), tie or small_gap."""
    judged = [answer for answer in answered.answers if answer.score is not None]
    if answered.refusal:
        return REFUSED
    if len(judged) < 2:
        return TOO_FEW
    best = max(judged, key=lambda answer: answer.score or 0.0)
    worst = min(judged, key=lambda answer: answer.score or 0.0)
    gap = (best.score or 0.0) - (worst.score or 0.0)
    if not gap or gap < min_gap:
        return SMALL_GAP if gap else TIE
    prompt = answered.prompt
    return Preference(
        id=record_id(prompt.source, f"sampled\x1f{prompt.id}"),
        prompt=prompt.turns,
        chosen=best.text,
        rejected=worst.text,
        source=prompt.source,
        language=prompt.language,
        meta={"prompt": prompt.id, "chosen_score": f"{best.score:.6g}", "rejected_score": f"{worst.score:.6g}"},
    )


class PairCounts:
    """Counts of prompts and answers, and sums of scores, by source and reason."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self.answers: Counter[str] = Counter()
        self.scores: dict[str, list[float]] = {"all": [], "chosen": [], "rejected": []}

    def add(self, answered: AnsweredPrompt, pair: Preference | str) -> None:
        source = answered.prompt.source
        self.answers.update(answer.fault or "judged" for answer in answered.answers)
        self.scores["all"] += [answer.score for answer in answered.answers if answer.score is not None]
        self.counts[source]["read"] += 1
        if isinstance(pair, str):
            self.dropped[source][pair] += 1
            return
        self.counts[source].update(_sizes(pair))
        for side in ("chosen", "rejected"):
            self.scores[side].append(float(pair.meta[f"{side}_score"]))

    def facts(self, split: str) -> dict[str, Any]:
        sources = {name: _source_facts(self.counts[name], self.dropped[name], split) for name in self.counts}
        totals = {key: sum(facts[key] for facts in sources.values()) for key in ("kept", "bytes", "words")}
        means = {f"mean_{side}_score": round(mean(found), 4) for side, found in self.scores.items()}
        return {"sources": sources, "records": totals.pop("kept"), **totals, **means, "answers": dict(self.answers)}

    def error(self) -> DataError:
        """Return the error of a job without a single pair."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sum(self.dropped.values(), Counter()).items())
        return DataError(
            f"no prompt gave a pair ({reasons}; answers: {dict(self.answers)}); raise sampling.temperature, num_answers or "
            "max_tokens, lower min_gap, or take another judge"
        )


def write_pairs(draft: Draft, num_parts: int, split: str, min_gap: float) -> dict[str, Any]:
    """Write the preferences of every source and copy the judged answers; return the counts."""
    writers: dict[str, ShardWriter] = {}
    counts = PairCounts()
    for index in range(num_parts):
        judged = draft.parts / "judged" / part_path(index)
        (draft.location / "answers" / part_path(index)).write_bytes(judged.read_bytes())
        found: dict[str, list[Preference]] = defaultdict(list)
        for answered in read_answers(judged):
            pair = make_pair(answered, min_gap)
            counts.add(answered, pair)
            if isinstance(pair, Preference):
                found[pair.source].append(pair)
        for source, pairs in found.items():
            if source not in writers:
                file = draft.location / RecordKind.preferences / source / split / part_path(0)
                writers[source] = ShardWriter(file, SCHEMAS[RecordKind.preferences])
            writers[source].write(to_table(pairs, RecordKind.preferences))
    for writer in writers.values():
        writer.close()
    if not writers:
        raise counts.error()
    return counts.facts(split)


def _source_facts(counts: Counter[str], dropped: Counter[str], split: str) -> dict[str, Any]:
    sizes = {key: counts[key] for key in ("records", "bytes", "words")}
    return {
        "kind": RecordKind.preferences.value,
        "read": counts["read"],
        "dropped": dict(dropped),
        "kept": counts["records"],
        "bytes": counts["bytes"],
        "words": counts["words"],
        "splits": {split: sizes} if counts["records"] else {},
    }


def _sizes(pair: Preference) -> dict[str, int]:
    texts = (*(turn.content for turn in pair.prompt), pair.chosen, pair.rejected)
    words = sum(len(text.split()) for text in texts)
    return {"records": 1, "bytes": sum(len(text.encode()) for text in texts), "words": words}


def print_counts(facts: Mapping[str, Any]) -> None:
    for source, counts in facts["sources"].items():
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts["dropped"].items())) or "none dropped"
        print(f"  {source}: {counts['read']:,} prompts, {counts['kept']:,} pairs ({lost})", flush=True)
    found = ", ".join(f"{count:,} {what}" for what, count in sorted(facts["answers"].items()))
    chosen, rejected = facts["mean_chosen_score"], facts["mean_rejected_score"]
    print(f"  answers: {found}; mean score {chosen:.2f} chosen, {rejected:.2f} rejected", flush=True)
