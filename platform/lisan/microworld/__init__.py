"""The embedded default corpus: a generated bilingual world of real facts, told in English, Arabic and Darija.

In: the name of a source and a `WorldConfig`. Out: records. Always: deterministic; a source tells only the facts of
its language, so that what a model learns through the other one can be measured.
"""
