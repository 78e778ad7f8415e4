"""SentencePiece vocabularies, from their files and from GGUF metadata, against the ``sentencepiece`` library: the same ids."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from triptych.errors import InputError
from triptych.text.sentencepiece import CONTROL, UNIGRAM, SentencePieces, build_tokenizer, read_model
from triptych.text.tokenizer import TextTokenizer

library = pytest.importorskip("sentencepiece")

CORPUS = [
    "a dog chases a ball",
    "the dog sleeps on the grass",
    "two men and a dog",
    "café naïve 12 345",
    "grass, grass!",
] * 40
KINDS = {
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<turn>"],
    },
    "t5": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "bos_id": -1,
        "eos_id": 1,
        "pad_id": 0,
        "unk_id": 2,
    },
}
MODELS: dict[str, bytes] = {}
TEXTS = [
    "a dog",
    " a  dog ",
    "the   grass\n\nsleeps",
    "Ünknown 犬 words",
    "dogdogdog",
    "",
    " ",
    "12,345 ½ ﬁ",
]


def trained(kind: str) -> bytes:
    if kind not in MODELS:
        file, size = io.BytesIO(), 60 if kind == "t5" else 340
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=file,
            vocab_size=size,
            hard_vocab_limit=False,
            minloglevel=2,
            **KINDS[kind],
        )
        MODELS[kind] = file.getvalue()
    return MODELS[kind]


def folder(path: Path, kind: str, **settings: Any) -> Path:
    (path / ("spiece.model" if kind == "t5" else "tokenizer.model")).write_bytes(trained(kind))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_ids_and_texts(kind: str, tmp_path: Path) -> None:
    ours, theirs = (
        TextTokenizer.from_directory(folder(tmp_path, kind)),
        library.SentencePieceProcessor(model_proto=trained(kind)),
    )
    letters = random.Random(0)
    made = ["".join(letters.choices("adgo rst,é1\n", k=letters.randrange(1, 25))) for _ in range(200)]
    for text in [*TEXTS, *made]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert theirs.unk_id() in ids or ours.decode(ids) == theirs.decode(ids), text
    assert len(ours) == theirs.vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_special_token_is_text(kind: str, tmp_path: Path) -> None:
    """Although the vocabulary of T5 holds it as a piece."""
    tokenizer = TextTokenizer.from_directory(folder(tmp_path, kind))
    for text in ("</s>", "a dog</s>", "<s> a </s>dog</s>"):
        assert not ({*tokenizer.specials.values()} - {tokenizer.unk_id}) & {*tokenizer.encode(text)}, text
        assert [*tokenizer.eos_ids] == tokenizer.encode("</s>", specials=True)
    tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    again = TextTokenizer.from_directory(tmp_path)
    assert again.encode("a dog</s>") == tokenizer.encode("a dog</s>") and again.eos_ids == tokenizer.eos_ids


@given(st.text(max_size=30))
@example("  \N{LOWER ONE EIGHTH BLOCK} ")
def test_any_text_comes_back(text: str) -> None:
    """Bytes stand for what is not in the vocabulary."""
    tokenizer = build_tokenizer(SentencePieces(*pieces_of("llama")))
    back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    assert back == text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")


def pieces_of(kind: str) -> tuple[tuple[str, ...], tuple[float, ...], tuple[int, ...]]:
    """As the metadata of a GGUF file has them."""
    theirs = library.SentencePieceProcessor(model_proto=trained(kind))
    ids = range(theirs.vocab_size())

    def kind_of(i: int) -> int:
        names = ((theirs.is_byte, 6), (theirs.is_unknown, 2), (theirs.is_control, 3))
        return next((kind for is_one, kind in names if is_one(i)), 4 if theirs.id_to_piece(i) == "<turn>" else 1)

    kinds = map(kind_of, ids)
    return tuple(map(theirs.id_to_piece, ids)), tuple(map(theirs.get_score, ids)), tuple(kinds)


def test_the_better_piece_is_merged_first() -> None:
    """Whatever its id."""
    pieces, scores = ("<unk>", "a", "b", "c", "bc", "ab"), (0.0, -5.0, -6.0, -7.0, -2.0, -1.0)
    tokenizer = build_tokenizer(SentencePieces(pieces, scores, (2, 1, 1, 1, 1, 1), add_prefix=False))
    assert tokenizer.encode("abc").tokens == ["ab", "c"]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_gguf(kind: str) -> None:
    pieces, scores, kinds = pieces_of(kind)
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [*pieces], "tokenizer.ggml.scores": [*scores]}
    metadata |= {
        "tokenizer.ggml.token_type": [*kinds],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    ours = TextTokenizer.from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": kind == "llama"})
    theirs = library.SentencePieceProcessor(model_proto=trained(kind))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.encode("a dog", begin=True) == [1, *theirs.encode("a dog")]
    assert ours.specials == {"<s>": 1, "</s>": 2} and ours.eos_ids == {2}
    assert ours.encode("<s>", specials=True) == [1] and 1 not in ours.encode("<s>")
    for change in ({"tokenizer.ggml.scores": []}, {"tokenizer.ggml.tokens": 3}, {"tokenizer.ggml.scores": None}):
        with pytest.raises(InputError, match=r"scores|is invalid"):
            TextTokenizer.from_gguf(metadata | change)


def test_special_tokens_of_a_folder(tmp_path: Path) -> None:
    """The model's own names where tokenizer_config.json leaves them empty, as in LLaMA's first conversions; tokens added behind."""
    tokenizer = TextTokenizer.from_directory(folder(tmp_path, "llama", bos_token="", eos_token="", unk_token=""))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, {2}, True)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": len(tokenizer) + 1, "<pad>": len(tokenizer)}))
    added = TextTokenizer.from_directory(folder(tmp_path, "llama", add_bos_token=False))
    assert added.specials["<pad>"] == len(tokenizer) == added.specials["<image>"] - 1 and not added.add_bos
    assert added.encode("<image>", specials=True) == [len(tokenizer) + 1] and len(added.encode("<image>")) > 1
    (tmp_path / "t5").mkdir()
    t5 = TextTokenizer.from_directory(folder(tmp_path / "t5", "t5"))
    assert (t5.bos_id, t5.eos_ids, t5.add_bos) == (None, {1}, False)


def test_files_that_are_none(tmp_path: Path) -> None:
    content, path, chance = trained("llama"), tmp_path / "tokenizer.model", random.Random(0)
    model = read_model(folder(tmp_path, "llama") / "tokenizer.model")
    assert model.kinds.count(CONTROL) == 2 and model.model_type != UNIGRAM
    for length in range(0, len(content), len(content) // 60):
        path.write_bytes(content[: length + 1])
        try:
            assert len(read_model(path).pieces) <= len(model.pieces)  # cut between two pieces
        except InputError as error:
            assert "is not a SentencePiece model" in str(error)
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(3):
            changed[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            TextTokenizer.from_directory(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)
    with pytest.raises(InputError, match="cannot read"):
        read_model(tmp_path / "absent.model")
