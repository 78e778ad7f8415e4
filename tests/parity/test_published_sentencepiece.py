"""Folders whose tokenizer is a SentencePiece model alone, as the first InstructBLIP and Flan-T5 ones: the ids are transformers'."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from test_blip2_t5_transformers import random_weights as random_t5
from test_blip2_transformers import LM_SIZES, QUERIES, bert_tokenizer, image_processor, parts, photos, random_weights  # noqa: F401

from triptych import load
from triptych.convert.checkpoint import convert_checkpoint
from triptych.tasks.asking import PictureQuestion

library = pytest.importorskip("sentencepiece")

CORPUS = [
    "a dog chases a ball",
    "the dog sleeps on the grass",
    "A short image description: two men",
    "12 345 café!",
] * 40
QUESTION = "what is  on the grass, 12 of é?"


def trained(**settings: Any) -> bytes:
    file = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, hard_vocab_limit=False, minloglevel=2, **settings
    )
    return file.getvalue()


def llama_files(folder: Path) -> None:
    """Vicuna's within InstructBLIP: </s> begins and ends a text, [PAD] was added; no tokenizer.json."""
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    (folder / "tokenizer.model").write_bytes(trained(model_type="bpe", vocab_size=340, **settings))
    named = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "[PAD]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | about))
    size = library.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))


def t5_files(folder: Path) -> None:
    settings = {"normalization_rule_name": "nmt_nfkc", "bos_id": -1, "eos_id": 1, "pad_id": 0, "unk_id": 2}
    (folder / "spiece.model").write_bytes(trained(model_type="unigram", vocab_size=60, **settings))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    about = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | about))


def language_config(kind: str, words: int) -> Any:
    if kind == "llama":
        return transformers.LlamaConfig(**LM_SIZES, intermediate_size=30, vocab_size=words, eos_token_id=1)
    sizes = {"d_model": 28, "d_kv": 14, "d_ff": 30, "num_layers": 2, "num_heads": 2, "vocab_size": words}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    return transformers.T5Config(**sizes, **gated)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_same_ids(kind: str, tmp_path: Path, photos: list[Image.Image]) -> None:  # noqa: F811
    folder = tmp_path / "peer"
    folder.mkdir()
    (llama_files if kind == "llama" else t5_files)(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    written = {path: path.read_bytes() for path in folder.iterdir()}
    processor = transformers.InstructBlipProcessor(
        image_processor(), tokenizer, bert_tokenizer(), num_query_tokens=QUERIES
    )
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.InstructBlipConfig(**parts(language_config(kind, len(processor.tokenizer)), image))
    peer = (random_weights if kind == "llama" else random_t5)(transformers.InstructBlipForConditionalGeneration(config))
    peer.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    for path, content in written.items():
        path.write_bytes(content)
    convert_checkpoint(folder, tmp_path / "ours")
    ours: Any = load(tmp_path / "ours", device="cpu")
    prompt = f"Question: {' '.join(QUESTION.split())} Short answer:"
    for photo in photos:
        inputs = processor(images=photo, text=prompt, return_tensors="pt")
        before = 0 if kind == "t5" else inputs.input_ids.shape[1]
        ids = peer.generate(**inputs, do_sample=False, max_new_tokens=8, repetition_penalty=1.5)[0, before:].tolist()
        answer = ours.ask(photo, QUESTION, beams=1, max_new_tokens=8)
        assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    row = ours.read([ours.question_prompt(PictureQuestion(photos[:1], QUESTION))])[0]
    assert [i for piece in row.pieces if isinstance(piece, list) for i in piece] == tokenizer(prompt).input_ids[
        : None if kind == "llama" else -1
    ]
