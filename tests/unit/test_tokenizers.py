"""Words to ids and back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from triptych.errors import InputError
from triptych.text.tokenizer import TextTokenizer
from triptych.text.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, WordVocabulary, split_words

WORDS = ("a", "dog", "'s", "long-haired", "pup", "runs", "2", "don", "'t")
VOCABULARY = WordVocabulary((*SPECIALS, *WORDS))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's long-haired pup.", ["a", "dog", "'s", "long-haired", "pup"]),
        ("A dog \N{RIGHT SINGLE QUOTATION MARK}s ball", ["a", "dog", "'s", "ball"]),
        ("the dog\N{RIGHT SINGLE QUOTATION MARK}s ball", ["the", "dog", "'s", "ball"]),
        ("two dogs' balls", ["two", "dogs", "balls"]),
        ("\N{LEFT DOUBLE QUOTATION MARK}Go!\N{RIGHT DOUBLE QUOTATION MARK} (2 men), half-", ["go", "2", "men", "half"]),
        ("  \t\n", []),
        ("!?.,", []),
    ],
)
def test_split_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.lists(st.sampled_from([word for word in WORDS if word[0] != "'"]), min_size=1))
def test_round_trip_of_words(words: list[str]) -> None:
    ids = VOCABULARY.encode(" ".join(words))
    assert [VOCABULARY.words[i] for i in ids] == words
    assert VOCABULARY.encode(VOCABULARY.decode(ids)) == ids


@given(st.lists(st.integers(UNK + 1, len(VOCABULARY) - 1)))
def test_round_trip_of_ids(ids: list[int]) -> None:
    assert VOCABULARY.encode(VOCABULARY.decode([BOS, *ids, EOS, PAD, PAD])) == ids


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    ids = VOCABULARY.encode(text)
    assert all(UNK <= i < len(VOCABULARY) for i in ids)  # never a pad, a start or an end
    known = [word if word in WORDS else "<unk>" for word in split_words(text)]
    assert [VOCABULARY.words[i] for i in ids] == known


def test_decoded_text_reads_as_a_sentence() -> None:
    assert VOCABULARY.decode(VOCABULARY.encode("a DOG's pup don't run")) == "A dog's pup don't <unk>."
    assert VOCABULARY.decode([]) == VOCABULARY.decode([BOS, EOS, PAD]) == ""


def test_unknown_words_keep_their_place() -> None:
    assert VOCABULARY.encode("a zebra dog")[1] == UNK
    assert len(VOCABULARY.encode("zebra <end> <pad> <start>")) == 4
    assert VOCABULARY.encode("<end> <pad> <start>") == [UNK] * 3


def test_build_cuts_and_orders_by_frequency_then_alphabet() -> None:
    captions = ["dog cat dog", "Cat dog! bird ant", "bird ant owl"]
    assert WordVocabulary.build(captions, min_count=2).words == (*SPECIALS, "dog", "ant", "bird", "cat")
    assert WordVocabulary.build(captions, min_count=3).words == (*SPECIALS, "dog")
    assert WordVocabulary.build(captions, min_count=1).words[-1] == "owl"
    assert WordVocabulary.build([]).words == SPECIALS
    assert len(WordVocabulary.build(captions, min_count=2)) == 8


def test_default_cut_is_five() -> None:
    assert WordVocabulary.build(["dog"] * 5 + ["cat"] * 4).words == (*SPECIALS, "dog")


@given(st.lists(st.sampled_from(["dog cat", "cat", "bird", "bird dog owl", "ant"])), st.integers(1, 3))
def test_build_does_not_depend_on_the_order_of_captions(captions: list[str], cut: int) -> None:
    shuffled = captions.copy()
    random.Random(0).shuffle(shuffled)
    assert WordVocabulary.build(captions, cut) == WordVocabulary.build(shuffled, cut)


def test_bad_vocabularies_are_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        WordVocabulary((*SPECIALS, "dog", "cat", "dog"))
    with pytest.raises(InputError, match="begins with <pad> <start> <end> <unk>"):
        WordVocabulary(("dog", *SPECIALS))
    with pytest.raises(InputError, match="begins with"):
        WordVocabulary(SPECIALS[:3])


def test_content_words() -> None:
    words = WordVocabulary((*SPECIALS, "dog", "a", "'s", "bike", "bicycles", "motorcycle", "dogs", "buses", "bus"))
    repetitions = [words.repetitions(token) for token in range(4, len(words))]
    assert [words.repetitions(token) for token in range(4)] == [frozenset()] * 4
    assert repetitions == [{4, 10}, set(), set(), {7, 8, 9}, {8}, {7, 9}, {10}, {11}, {11, 12}]


def test_content_words_of_a_language_model() -> None:
    """Only tokens behind a space begin words; synonyms count in lower case."""
    texts = [" bike", " bicycle", " Bikes", " the", "bike", " dog", " 2", " motorcycle"]
    synonyms = (" bikes", " bicycles", " motorcycles", " motorbike", " motorbikes")
    vocabulary = {text: token for token, text in enumerate([*texts, *synonyms])}
    tokenizer = TextTokenizer(Tokenizer(WordLevel(vocabulary, unk_token=" the")), {}, unk_id=3)
    bikes, plurals = {*range(8, 13), 0, 1, 7}, {8, 9, 10, 12}
    found = [tokenizer.repetitions(token) for token in range(len(texts))]
    assert found == [bikes, {0, 1, 8, 9}, {2, *plurals}, set(), set(), {5}, set(), {0, 7, 8, 10, 11, 12}]
