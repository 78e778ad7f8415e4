"""Words of any script: marks and inner joiners belong to them, composed or decomposed."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics.captions import score_captions
from triptych.metrics.tokenize import ptb_tokenize
from triptych.text.vocabulary import SPECIALS, WordVocabulary, split_words

SENTENCES = {
    "Hindi": "एक कुत्ता दौड़ता है",
    "Nukta": "फ़िल्म क़लम",
    "Vietnamese": "một con chó chạy trên bãi cỏ",
    "Thai": "สุนัขวิ่ง บนหญ้า",
    "Tamil": "ஒரு நாய் ஓடுகிறது",
    "Malayalam": "ഒരു കുട്ടി ഓടുന്നു",
    "Sinhala": "ශ්\u200dරී ලංකා",
    "Khmer": "សត្វឆ្កែ រត់",
    "Burmese": "မြန်မာ ခွေး",
    "Tibetan": "ཁྱི",
    "Hebrew": "שָׁלוֹם עֲלֵיכֶם",
    "Arabic": "كِتَابٌ جميل",
    "Persian": "می\u200cخواهم سگ",
    "Bengali": "ক্ষেত্র কুকুর",
    "Korean": "개가 공원에서 달린다",
    "Japanese": "犬が ドッグ ぱ",
    "Cyrillic": "ёж й е̄ж",
    "Greek": "ὁ κύων τρέχει",
    "Yoruba": "ọmọ kékeré ń ṣeré",
    "Lithuanian": "i̇́ lūšis",
    "Taiwanese": "ta̍k o͘",
    "Turkish": "iki köpek",
    "Adlam": "𞤢𞤣𞤤𞤢𞤥",
    "Brahmi": "𑀅𑀰𑁄𑀓",
}
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


@pytest.mark.parametrize("name", SENTENCES)
def test_words_are_kept_whole_in_every_script(name: str) -> None:
    expected = [unicodedata.normalize("NFC", word) for word in SENTENCES[name].split()]
    for form in FORMS:
        text = unicodedata.normalize(form, SENTENCES[name])
        assert split_words(f"  {text}!") == split_words(f"«{text.upper().lower()}».") == expected
        assert ptb_tokenize(f"{text}.") == expected
    vocabulary = WordVocabulary((*SPECIALS, *expected))
    assert (
        vocabulary.decode(vocabulary.encode(unicodedata.normalize("NFD", SENTENCES[name])))[1:-1]
        == " ".join(expected)[1:]
    )


def test_capitals_whose_small_letters_have_marks() -> None:
    assert split_words("İki") == ptb_tokenize("İki") == ["i̇ki"]
    for split in (split_words, ptb_tokenize):
        assert split("J\u030c") == split("\u01f0") == ["\u01f0"]


def test_joiners_count_within_words_only() -> None:
    for split in (split_words, ptb_tokenize):
        assert split("\u200dab\u200d c\u200cd\u200c \u200c") == ["ab", "c\u200cd"]
        assert split("soft\u00adhyphen word\u2060joiner\ufeff") == ["softhyphen", "wordjoiner"]
        assert split("zero\u200bwidth") == ["zero", "width"]
        assert split("\u0301 \u0301\u0301 \ufe0f") == []


def test_hyphens_and_apostrophes_stand_behind_marks_too() -> None:
    assert split_words("ta̍k-ke x̂'s") == ["ta̍k-ke", "x̂", "'s"]
    assert ptb_tokenize("ta̍k-ke x̂'s x̂n't") == ["ta̍k-ke", "x̂", "'s", "x̂", "n't"]


def test_only_latin_letters_are_abbreviations() -> None:
    assert ptb_tokenize("개. 두 है. é. B. u.s. non-u.s. ж.") == ["개", "두", "है", "é", "b.", "u.s.", "non-u.s.", "ж"]


def test_emoji_are_tokens_of_the_metrics_without_joiners() -> None:
    assert ptb_tokenize("❤️ 👨\u200d👩\u200d👧 dog") == ["❤", "👨", "👩", "👧", "dog"]


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "M", "N", "Zs", "Cf", "Po"])))
def test_composed_and_decomposed_text_have_the_same_words(text: str) -> None:
    for split in (split_words, ptb_tokenize):
        words = [split(unicodedata.normalize(form, text)) for form in FORMS]
        assert words[0] == words[1]
        for word in words[0]:
            assert unicodedata.is_normalized("NFC", word)
            assert word[0] not in "\u200c\u200d" and word[-1] not in "\u200c\u200d"


def test_scores_do_not_depend_on_the_form() -> None:
    references = {"1": [unicodedata.normalize("NFD", SENTENCES["Vietnamese"])], "2": ["x y"]}
    scores = score_captions({"1": SENTENCES["Vietnamese"], "2": "x y"}, references, meteor=False)
    assert scores["BLEU-4"] is not None and scores["ROUGE-L"] == pytest.approx(1)


def test_long_runs_take_no_long_time() -> None:
    for text in ("\u093e" * 50_000, "कु" * 20_000, "a\u0301-" * 10_000, "a\u200d" * 20_000):
        ptb_tokenize(text)
        split_words(text)
