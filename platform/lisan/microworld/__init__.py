"""The embedded default corpus: a generated bilingual world of real facts in English, Arabic and Darija.

Deterministic. A source states only the facts of its language, so transfer from the other language can be measured.
"""
