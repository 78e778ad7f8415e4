"""Marks and letters as Stanford's tokenizer takes them, in the scripts whose marks it knows."""

import shutil
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.metrics.tokenize import ptb_tokenize
from triptych.text.vocabulary import split_words

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")

LETTERS_AND_MARKS = {
    "Latin": ("abcdeghkmnopqruvxyz", range(0x300, 0x315)),
    "Cyrillic": ("абвгджзклмнопрстухя", range(0x300, 0x315)),
    "Greek": ("αβγδεζηθικλμνξοπρτυφχψω", range(0x300, 0x315)),
    "Hebrew": ("אבגדהוזחטיכלמנסעפצקרשת", range(0x5B0, 0x5BB)),
    "Arabic": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", range(0x64B, 0x653)),
    "Devanagari": ("कखगघचछजझटठडढणतथदधनपफबभमयरलवसह", [*range(0x93E, 0x94E)]),
    "Thai": ("กขคงจชซญฐณดตถทธนบปผพฟมยรลวสหอ", [0xE31, *range(0xE34, 0xE3B), *range(0xE47, 0xE4E)]),
    "Telugu": ("కఖగఘచఛజఝటఠడఢణతథదధనపఫబభమయరలవసహ", [*range(0xC3E, 0xC45), 0xC4D]),
    "Syriac": ("ܐܒܓܕܗܘܙܚܛܝܟܠܡܢ", range(0x730, 0x73A)),
}


@st.composite
def words(draw: Any) -> str:
    letters, marks = LETTERS_AND_MARKS[draw(st.sampled_from([*LETTERS_AND_MARKS]))]
    syllables = st.tuples(
        st.sampled_from(letters), st.lists(st.sampled_from([*marks]).map(chr), max_size=2).map("".join)
    )
    word = "".join(map("".join, draw(st.lists(syllables, min_size=2, max_size=6))))
    return unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), word)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.lists(words(), min_size=1, max_size=6), min_size=60, max_size=80))
def test_marks(sentences: list[list[str]]) -> None:
    peer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    texts = [" ".join(sentence) for sentence in sentences]
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    theirs = peer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(composed)})
    for i, text in enumerate(texts):
        assert ptb_tokenize(text) == theirs[i][0].split()
        assert split_words(text) == composed[i].split()
