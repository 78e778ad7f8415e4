"""Patterns for the letters of words in any script: letters and digits with their marks, and the joiners between them.

They are for the package ``regex``. Python's ``re`` does not know marks (Unicode's category M), so it would cut
Hindi, Thai or decomposed Vietnamese into single letters.
"""

import re
import unicodedata

from triptych.errors import InputError

MARKS = r"(?:\p{M}|[\u200c\u200d](?=[\p{L}\p{N}\p{M}]))*+"
"""The marks of a letter (vowel signs, accents, viramas), and a zero-width joiner or non-joiner if the word continues after it."""
LETTER = rf"(?:[\p{{L}}\p{{Nl}}\p{{No}}]{MARKS})"
LETTER_OR_DIGIT = rf"(?:[\p{{L}}\p{{N}}]{MARKS})"

INVISIBLE = dict.fromkeys(map(ord, "\N{SOFT HYPHEN}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}"))
"""Characters that may occur in a word but do not count."""


def compose(text: str) -> str:
    """``text`` in Unicode's form NFC (a letter and its accent are one character), without invisible hyphens."""
    return unicodedata.normalize("NFC", text.translate(INVISIBLE))


SURROGATE = re.compile("[\ud800-\udfff]")


def check_unicode(text: str) -> None:
    """Raises InputError: the text contains surrogates, which stand for bytes that are not UTF-8."""
    if SURROGATE.search(text):
        raise InputError(
            f"the text {text[:60]!a} is not Unicode: it contains bytes of another encoding; write it as UTF-8"
        )
