"""Short texts that every expanded tokenizer must give back, and source code that it must not cut differently.

Out: constants of our own writing. Always: `CODE` holds no character beyond ASCII, so that it is protected whatever the target's
script.
"""

ROUND_TRIP = (
    "The quick brown fox – “quoted”, naïve café, 1,234.50 €",
    "العربية لغة جميلة، أليس كذلك؟",
    "الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ",
    "كتـــــاب جميـــل",
    "٠١٢٣٤٥٦٧٨٩ و ۰۱۲۳۴۵۶۷۸۹ و 0123456789، ٣٫١٤ و ١٬٠٠٠",
    "واش كاين شي حاجة؟ إزيّك عامل إيه؟ 3lach a khouya",
    "پنجاه گچ ژاله ڤيديو ڭاع ۓ ﷺ ﷲ لا ﻷ",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ",
    "hello 👋🏽 مرحبا 👨‍👩‍👧 🏳️‍🌈 🇲🇦🇪🇬 ❤️",
    "نص\u200fمع\u200eعلامات \u202bواتجاه\u202c \u2067معزول\u2069",
    "می‌خواهم کتاب‌ها را",
    "漢字かな交じり文、한국어",
    "हिन्दी में क्‍या है? শব্দ",
    "שָׁלוֹם עולם русский язык Ελληνικά ภาษาไทย",
    "المغرب2024Rabat(الرباط)https://example.org/مقال?q=1",
    "def total(rows):\n\treturn sum(row['قيمة'] for row in rows)  # المجموع\n",
    "  two  spaces,\ttabs\t\tand   three\n\n\nline ends\r\n",
    "سطر\n\n    مسافات    كثيرة\tوجدولة\n",
    "a\u00a0b\u3000c\u2009d",
    "cafe\u0301 ا\u0653لعربية أ\u064e\u0651 ﬁn",
)
"Scripts, tashkeel, tatweel, digits, emoji, directions, joiners, mixtures, white space."

_PYTHON = '''\
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    owner: str
    balance: float = 0.0

    def deposit(self, amount: float) -> "Account":
        """Return a new account; the old one stays as it is."""
        if amount <= 0:
            raise ValueError(f"amount must be > 0, got {amount!r}")
        return Account(self.owner, self.balance + amount)


if __name__ == "__main__":
    accounts = [Account(name).deposit(10 ** i) for i, name in enumerate(["ada", "grace"])]
    print({a.owner: round(a.balance, 2) for a in accounts}, sep="\\n")
'''
_C = """\
#include <stdio.h>
#define SWAP(a, b) do { int t_ = (a); (a) = (b); (b) = t_; } while (0)

/* Sorts n numbers in place. */
static void sort(int *values, size_t n)
{
\tfor (size_t i = 1; i < n; ++i)
\t\tfor (size_t j = i; j > 0 && values[j - 1] > values[j]; --j)
\t\t\tSWAP(values[j - 1], values[j]);
}

int main(void)
{
\tint values[] = {0x1F, -3, 07, 42};
\tsort(values, sizeof values / sizeof *values);
\tprintf("%d%c", values[0], '\\n');
\treturn 0;
}
"""
_JSON = """\
{
  "name": "sensor-17",
  "readings": [{"t": 1700000000, "value": -1.5e-3}, {"t": 1700000060, "value": null}],
  "tags": {"unit": "mV", "ok": true, "path": "C:\\\\data\\\\raw"}
}
"""
_HTML = """\
<!DOCTYPE html>
<html lang="en">
  <head><meta charset="utf-8"><title>Orders &amp; returns</title>
    <style>td.total { font-weight: 600; color: #c00; }</style></head>
  <body onload="start()">
    <table id="orders"><tr><td class="total">12.50</td></tr></table>
    <script>const start = () => document.querySelectorAll("td").forEach((td) => td.title = `${td.innerText}?`);</script>
  </body>
</html>
"""
_SHELL = """\
#!/bin/sh
set -eu
for file in "$@"; do
    grep -nE '^[[:space:]]*(def|class) ' "$file" | awk -F: '{ print $1 "\\t" $2 }' >> index.tsv || true
done
SELECT=$(printf 'SELECT id, COUNT(*) FROM t WHERE a <> %s GROUP BY id;' "$1")
"""
CODE = (_PYTHON, _C, _JSON, _HTML, _SHELL)
"Python, C, JSON, HTML with its scripts and styles, shell with SQL."
