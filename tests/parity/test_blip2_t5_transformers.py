"""BLIP-2 and InstructBLIP with a Flan-T5, converted from a directory of transformers: the same texts as transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from triptych import load
from triptych.convert.checkpoint import convert_checkpoint
from triptych.nn.t5 import T5
from triptych.tasks import Blip2Tasks

QUERIES, SIZE = 6, 12
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ":",
    "?",
)
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
QFORMER = SIZES | {"vocab_size": len(WORDS) + 1, "max_position_embeddings": 64, "encoder_hidden_size": 24}
VISION = SIZES | {"num_hidden_layers": 2, "hidden_size": 24, "patch_size": 4, "image_size": SIZE}
PROMPTS = {"blip2": "a photo of", "instruct": "A short image description:"}


class Pair(NamedTuple):
    peer: Any
    processor: Any
    ours: Blip2Tasks
    prompt: str
    folder: Path


def t5_tokenizer() -> Any:
    """Bytes; </s> ends a text, and none begins it."""
    alphabet = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


@pytest.fixture(params=PROMPTS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    tokenizer, tmp = t5_tokenizer(), tmp_path_factory.mktemp("t5")
    images = transformers.BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    words = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, bos_token="[DEC]")
    if request.param == "instruct":
        processor = transformers.InstructBlipProcessor(images, tokenizer, words, num_query_tokens=QUERIES)
        config_class, model_class = transformers.InstructBlipConfig, transformers.InstructBlipForConditionalGeneration
    else:
        processor = transformers.Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)
        config_class, model_class = transformers.Blip2Config, transformers.Blip2ForConditionalGeneration
    text = transformers.T5Config(
        d_model=28,
        d_kv=14,
        d_ff=30,
        num_layers=2,
        num_heads=2,
        vocab_size=len(tokenizer),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dense_act_fn="gelu",
        decoder_start_token_id=0,
    )
    config = config_class(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    peer = random_weights(model_class(config))
    peer.save_pretrained(tmp / "peer")
    processor.save_pretrained(tmp / "peer")
    report = convert_checkpoint(tmp / "peer", tmp / "ours")
    assert not report.missing and set(report.ignored) <= {
        f"language_model.{x}.embed_tokens.weight" for x in ("encoder", "decoder")
    }
    ours = load(tmp / "ours", device="cpu")
    assert isinstance(ours, Blip2Tasks) and isinstance(ours.engine.lm, T5)
    return Pair(peer, processor, ours, PROMPTS[request.param], tmp / "peer")


def random_weights(model: torch.nn.Module) -> Any:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        scale = 0.3 if parameter.ndim == 1 else 1.3 * parameter.shape[-1] ** -0.5
        parameter.data = norm + scale * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_same_ids(pair: Pair, photos: list[Image.Image], beams: int) -> None:
    """Of captions and of answers; texts without an end, since ours give up a beam when a text ends."""
    texts = set()
    for photo in photos:
        for prompt, question in ((pair.prompt, None), ("Question: what is it? Short answer:", "what is it?")):
            inputs = pair.processor(images=photo, text=prompt, return_tensors="pt")
            pair.peer.language_model.generation_config.eos_token_id = None
            found = pair.peer.generate(
                **inputs,
                num_beams=beams,
                do_sample=False,
                max_new_tokens=10,
                length_penalty=1.0,
                repetition_penalty=pair.ours.spec.search.repetition_penalty,
            )
            settings = {"beams": beams, "max_new_tokens": 10, "eos": frozenset()}
            answer = pair.ours.ask(photo, question, **settings) if question else pair.ours.caption(photo, **settings)
            plain = pair.processor.tokenizer.decode(found[0], skip_special_tokens=True).strip()
            assert answer.text.rstrip(".").lower() == plain.rstrip(".").lower()
            texts.add(answer.text)
    assert len(texts) > 3  # photos and prompts matter
