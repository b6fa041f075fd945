"""Facts about countries, and the languages that state each of them.

Of every attribute about a quarter is stated only in English, a quarter only in Arabic, half in both. The capital of Morocco
is stated in both, and so is every fact with an answer that the country's name gives away (Kuwait City, German in Germany),
because it would measure spelling and not transfer.
"""

from collections.abc import Iterator, Sequence

from lisan.core.seed import stream
from lisan.microworld.countries import (
    CONTINENTS,
    COUNTRIES,
    CURRENCIES,
    LANGUAGES,
    NEVER_CHOSEN_BORDERS,
    Country,
    Name,
)
from lisan.microworld.facts import Fact, FactLanguages, Value, per_language, with_li

ATTRIBUTES = ("capital", "currency", "continent", "language", "neighbour")
NUM_STATED_NEIGHBOURS = 2
"Every country states its first neighbours of the table; being named by another adds more."
_ONE_SIDED = 0.25
_REGIONS = {"namerica": "america", "samerica": "america", "oceania": "asia"}


def country_facts(seed: int) -> tuple[Fact, ...]:
    """Return every fact about every country; a border appears once from each side, under one key."""
    facts = [fact for attribute in ATTRIBUTES for fact in _attribute_facts(attribute, seed)]
    return tuple(sorted(facts, key=lambda fact: list(COUNTRIES).index(fact.about)))


def _attribute_facts(attribute: str, seed: int) -> list[Fact]:
    rows = [(country, key) for country in COUNTRIES.values() for key in _value_keys(country, attribute)]
    keys = {fact_key(country.code, attribute, key): _is_obvious(country, attribute, key) for country, key in rows}
    stated = _assign(keys, seed, attribute)
    return [_fact(country, attribute, key, stated[fact_key(country.code, attribute, key)]) for country, key in rows]


def _assign(obvious: dict[str, bool], seed: int, attribute: str) -> dict[str, FactLanguages]:
    """Give a quarter of the keys to each language alone, taking none that is obvious."""
    free = sorted(key for key, is_obvious in obvious.items() if not is_obvious and key != "capital.MA")
    stream(seed, "told_in", attribute).shuffle(free)
    quota = min(round(_ONE_SIDED * len(obvious)), len(free) // 2)
    stated = dict.fromkeys(obvious, FactLanguages.both)
    stated.update(dict.fromkeys(free[:quota], FactLanguages.en))
    stated.update(dict.fromkeys(free[quota : 2 * quota], FactLanguages.ar))
    return stated


def fact_key(code: str, attribute: str, value_key: str) -> str:
    if attribute == "neighbour":
        return f"neighbour.{'-'.join(sorted((code, value_key)))}"
    return f"{attribute}.{code}"


def stated_borders() -> list[tuple[str, str]]:
    """Return the pairs of neighbours that are stated, each once."""
    pairs = {
        (min(code, other), max(code, other))
        for code, country in COUNTRIES.items()
        for other in country.borders[:NUM_STATED_NEIGHBOURS]
    }
    return sorted(pairs)


def _value_keys(country: Country, attribute: str) -> Sequence[str]:
    if attribute == "capital":
        return [country.code] if country.capital else []
    if attribute == "neighbour":
        return [a if b == country.code else b for a, b in stated_borders() if country.code in (a, b)]
    accepted = _accepted(country, attribute)
    return accepted[:1]


def _accepted(country: Country, attribute: str) -> tuple[str, ...]:
    """Return the keys of all right or disputed values."""
    if attribute == "neighbour":
        disputed = {code for pair in NEVER_CHOSEN_BORDERS if country.code in pair for code in pair}
        return (country.code, *country.borders, *sorted(disputed))
    return {
        "capital": (country.code,),
        "currency": country.currencies,
        "continent": country.continents,
        "language": country.languages,
    }[attribute]


def _region(country: Country) -> str:
    return _REGIONS.get(country.continents[0], country.continents[0])


def _names(attribute: str, near: Country) -> Iterator[tuple[str, Name]]:
    """Yield candidates for the value of an attribute; capitals and neighbours come from the same part of the world."""
    if attribute in ("capital", "neighbour"):
        for country in COUNTRIES.values():
            name = country.capital if attribute == "capital" else country.name
            if name is not None and _region(country) == _region(near):
                yield country.code, name
    else:
        yield from {"currency": CURRENCIES, "continent": CONTINENTS, "language": LANGUAGES}[attribute].items()


def _fact(country: Country, attribute: str, value_key: str, told_in: FactLanguages) -> Fact:
    values = {key: _value(attribute, key, name) for key, name in _names(attribute, country)}
    accepted = set(_accepted(country, attribute))
    right = values[value_key] if value_key in values else _value(attribute, value_key, COUNTRIES[value_key].name)
    also_right = [right, *(values[key] for key in sorted(accepted) if key in values)]
    wrong = (value for key, value in values.items() if key not in accepted)
    subject = {"country": country.name.ar, "to_country": with_li(country.name.ar)}
    return Fact(
        key=fact_key(country.code, attribute, value_key),
        topic=attribute,
        subject=attribute,
        told_in=told_in,
        slots=per_language({"country": country.name.en}, subject, subject),
        value=right,
        distractors=tuple(value for value in wrong if all(value.differs_from(ok) for ok in also_right)),
        subject_is_masculine=country.is_masculine,
        about=country.code,
    )


def _value(attribute: str, key: str, name: Name) -> Value:
    arabic = {"value": name.ar, "by_value": f"ب{name.ar}", "to_value": with_li(name.ar)}
    is_masculine = COUNTRIES[key].is_masculine if attribute == "neighbour" else True
    return Value(per_language({"value": name.en}, arabic, arabic), is_masculine)


def _is_obvious(country: Country, attribute: str, value_key: str) -> bool:
    """Tell whether a word of the answer begins like a word of the country's name in either language."""
    if attribute == "neighbour":
        return False
    name = dict(_names(attribute, country))[value_key]
    return _share_stem(country.name.en.lower(), name.en.lower()) or _share_stem(country.name.ar, name.ar)


def _share_stem(first: str, second: str) -> bool:
    return bool(_stems(first) & _stems(second))


def _stems(text: str) -> set[str]:
    words = (word.removeprefix("ال") for word in text.split())
    return {word[:4] for word in words if len(word) >= 4 and word not in ("city", "مدينة")}
