"""What a word is made of, in any script: letters and digits with their marks, and the joiners between them.

Patterns are for the package ``regex``: Python's own ``re`` does not know marks (Unicode's category M), so that it cuts
Hindi, Thai or decomposed Vietnamese into single letters.
"""

import re
import unicodedata

from triptych.errors import InputError

MARKS = r"(?:\p{M}|[\u200c\u200d](?=[\p{L}\p{N}\p{M}]))*+"
"""The marks of a letter (vowel signs, accents, viramas); a zero-width joiner or non-joiner counts where the word goes on."""
LETTER = rf"(?:[\p{{L}}\p{{Nl}}\p{{No}}]{MARKS})"
LETTER_OR_DIGIT = rf"(?:[\p{{L}}\p{{N}}]{MARKS})"

INVISIBLE = dict.fromkeys(map(ord, "\N{SOFT HYPHEN}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}"))
"""Characters that a word may hold but does not consist of."""


def compose(text: str) -> str:
    """``text`` in the one form that Unicode calls NFC, without invisible hyphens: a letter and its accent are one character."""
    return unicodedata.normalize("NFC", text.translate(INVISIBLE))


SURROGATE = re.compile("[\ud800-\udfff]")


def check_unicode(text: str) -> None:
    """Raises InputError: the text holds surrogates, which stand for bytes of another encoding than UTF-8."""
    if SURROGATE.search(text):
        raise InputError(
            f"the text {text[:60]!a} is not Unicode: it holds bytes of another encoding; write it as UTF-8"
        )
