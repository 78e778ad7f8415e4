"""Published BLIP-2 models from end to end: transformers' directory, ``convert_checkpoint``, ``load``, against transformers' own answers.

Tiny models, every weight of them random; photos and texts go through transformers' processor there and through ours here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip2 import read_prompt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from triptych import load
from triptych.checkpoints.format import load_checkpoint
from triptych.checkpoints.place import LoadReport
from triptych.convert.checkpoint import convert_checkpoint
from triptych.errors import InputError
from triptych.generate import Hypothesis
from triptych.models import load_blip2, save_blip2
from triptych.tasks import Blip2Tasks
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.blip2 import PhotoPrompt
from triptych.tasks.words import sentence, words_of

transformers = pytest.importorskip("transformers")

QUERIES, SIZE = 6, 12
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS), ":", "?", "[MASK]")
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
QFORMER_SIZES = SIZES | {"vocab_size": len(WORDS) + 1, "max_position_embeddings": 64, "encoder_hidden_size": 24}
VISION_SIZES = SIZES | {"num_hidden_layers": 2, "hidden_size": 24, "patch_size": 4, "image_size": SIZE}
LM_SIZES = {"hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
ANSWER = "Question: what is it? Answer:"


class Pair(NamedTuple):
    peer: Any
    processor: Any
    folder: Path  # as transformers saved it
    target: Path  # as we converted it
    report: LoadReport
    ours: Blip2Tasks


def random_weights(model: torch.nn.Module) -> Any:
    """Every weight random, norms, biases and queries too; large enough that photos change what is written."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        scale = 0.3 if parameter.ndim == 1 else 1.8 * parameter.shape[-1] ** -0.5
        parameter.data = norm + scale * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def byte_tokenizer() -> Any:
    """As OPT's: every byte is a token, a text begins with </s>, which is no end."""
    alphabet = ["</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    specials = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def llama_tokenizer() -> Any:
    """As Vicuna's: a space is written ▁, before the first word too."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *map(chr, range(33, 127)), *(f"<0x{i:02X}>" for i in range(256)), "▁d", "og"]
    model = models.BPE({c: i for i, c in enumerate(pieces)}, [("▁", "d"), ("o", "g")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def bert_tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, bos_token="[DEC]")


def image_processor() -> Any:
    return transformers.BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}, **COLOURS)


def parts(text_config: Any, image_token: int | None, **qformer: Any) -> dict[str, Any]:
    return {
        "vision_config": VISION_SIZES,
        "qformer_config": QFORMER_SIZES | qformer,
        "text_config": text_config,
        "num_query_tokens": QUERIES,
        "image_token_index": image_token,
    }


def converted(model: Any, processor: Any, tmp: Path, **saving: Any) -> Pair:
    peer = random_weights(model)
    peer.save_pretrained(tmp / "peer", **saving)
    processor.save_pretrained(tmp / "peer")
    report = convert_checkpoint(tmp / "peer", tmp / "ours")
    ours = load(tmp / "ours", device="cpu")
    assert isinstance(ours, Blip2Tasks)
    return Pair(peer, processor, tmp / "peer", tmp / "ours", report, ours)


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """BLIP-2 with OPT; a line's end is the end of a text."""
    tokenizer = byte_tokenizer()
    processor = transformers.Blip2Processor(image_processor(), tokenizer, num_query_tokens=QUERIES)
    text = LM_SIZES | {"ffn_dim": 30, "word_embed_proj_dim": 28, "vocab_size": len(tokenizer)}
    text |= {"eos_token_id": tokenizer.convert_tokens_to_ids("Ċ"), "bos_token_id": 0, "pad_token_id": 1}
    config = parts(transformers.OPTConfig(**text), tokenizer.convert_tokens_to_ids("<image>"))
    model = transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**config))
    return converted(model, processor, tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """InstructBLIP with a Llama, in several files."""
    tokenizer = llama_tokenizer()
    processor = transformers.InstructBlipProcessor(
        image_processor(), tokenizer, bert_tokenizer(), num_query_tokens=QUERIES
    )
    text = transformers.LlamaConfig(**LM_SIZES, intermediate_size=30, vocab_size=len(tokenizer))
    config = parts(text, tokenizer.convert_tokens_to_ids("<image>"))
    model = transformers.InstructBlipForConditionalGeneration(transformers.InstructBlipConfig(**config))
    return converted(model, processor, tmp_path_factory.mktemp("instruct"), max_shard_size="60KB")


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = parts(None, None, use_qformer_text_input=True) | {"image_text_hidden_size": 16}
    model = transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(**config))
    processor = transformers.Blip2Processor(image_processor(), bert_tokenizer())
    return converted(model, processor, tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(4)]


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max())


def written(
    ours: Blip2Tasks, prompt: str, photo: Image.Image, question: str | None = None, **search: Any
) -> Hypothesis:
    (row,) = ours.read([PhotoPrompt(prompt, [photo], question)])
    return ours.written([row], ours.search(**search))[0][0]


def read_instruction(ours: Blip2Tasks, text: str, photo: Image.Image) -> Tensor:
    """What the queries make of a photo when they read a text with it."""
    model, pieces = ours.engine.model, ours.word_pieces([text])
    return model.read_photos(ours.engine.image_keys_values(ours.encode([photo])), ours.engine.pieces(pieces)).queries


def test_every_key_is_accounted_for(generation: Pair, instruct: Pair, retrieval: Pair) -> None:
    for pair, missing in ((generation, ()), (instruct, ()), (retrieval, ("heads.temperature",))):
        saved = {key for file in pair.folder.glob("*.safetensors") for key in tensors_of(file)}
        assert set(pair.report.mapped) | set(pair.report.ignored) == saved
        assert (pair.report.missing, pair.report.ignored) == (missing, ())
    assert len(list(instruct.folder.glob("*.safetensors"))) > 2


def tensors_of(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        return set(stored.keys())


def test_pixels_and_features(generation: Pair, photos: list[Image.Image]) -> None:
    pixels = generation.processor(images=photos, return_tensors="pt").pixel_values
    theirs = generation.peer.vision_model(pixels).last_hidden_state
    close(torch.stack(generation.ours.encode(photos)), theirs)
    close(generation.ours.engine.model.encode(pixels), theirs)


@pytest.mark.parametrize("text", ["a photo of", ANSWER])
def test_logits_of_the_whole_prompt(generation: Pair, photos: list[Image.Image], text: str) -> None:
    """The soft prompt, </s>, the text: at every place the same next token, to 1e-5."""
    for photo in photos:
        inputs = generation.processor(images=photo, text=text, return_tensors="pt")
        theirs = generation.peer(**inputs).logits
        lm = generation.ours.engine.lm
        prompt = read_prompt(generation.ours, f"<image>{text}", [photo]).inputs
        assert prompt.shape[1] == inputs.input_ids.shape[1] == QUERIES + 1 + len(text)
        close(lm.logits(lm(prompt)), theirs)


@pytest.mark.parametrize("search", [{"beams": 1}, {"beams": 4}, {"beams": 5, "length_penalty": -1.0}])
@pytest.mark.parametrize("text", ["a photo of", ANSWER])
def test_generated_ids(
    generation: Pair, photos: list[Image.Image], text: str, search: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, texts, search = generation.ours, set(), search | endless(generation, search["beams"], monkeypatch)
    for photo in photos:
        inputs = generation.processor(images=photo, text=text, return_tensors="pt")
        ids, score = their_text(generation.peer, inputs, search)
        mine = written(ours, f"<image>{text}", photo, max_new_tokens=16, **search)
        assert list(mine.ids) == ids
        assert mine.score(search.get("length_penalty", 1.0)) == pytest.approx(score, rel=1e-5)
        texts.add(mine.ids)
        if text == ANSWER:
            answer = ours.ask(photo, "what is it?", max_new_tokens=16, **search)
        else:
            answer = ours.caption(photo, max_new_tokens=16, **search)
        plain = generation.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.text == (plain if text == ANSWER else sentence(plain))
    assert len(texts) > 1  # the photos matter


def endless(pair: Pair, beams: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Several beams write texts without an end on both sides: ours give up a beam when a text ends, theirs go on with all."""
    if beams == 1:
        return {}
    monkeypatch.setattr(pair.peer.language_model.generation_config, "eos_token_id", None)
    return {"eos": frozenset()}


def their_text(peer: Any, inputs: Any, search: dict[str, Any], **settings: Any) -> tuple[list[int], float]:
    """The new ids, without the end, and the score that transformers gives them."""
    found = peer.generate(
        **inputs,
        num_beams=search["beams"],
        length_penalty=search.get("length_penalty", 1.0),
        do_sample=False,
        max_new_tokens=16,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    ids = found.sequences[0, inputs.input_ids.shape[1] :]
    beams = getattr(found, "beam_indices", None)
    steps = peer.language_model.compute_transition_scores(
        found.sequences, found.scores, beams, normalize_logits=beams is None
    )
    ends = settings.get("eos_token_id", peer.language_model.generation_config.eos_token_id)
    kept = ids.tolist()[: ids.tolist().index(ends) + 1] if ends in ids.tolist() else ids.tolist()
    total = float(steps[0, : len(kept)].sum())
    return [i for i in kept if i != ends], total / len(kept) ** search.get("length_penalty", 1.0)


def test_a_text_ends_where_theirs_does(generation: Pair, photos: list[Image.Image]) -> None:
    """The token that the peer writes fourth, taken as the end."""
    for photo in photos:
        inputs = generation.processor(images=photo, text="a photo of", return_tensors="pt")
        end = their_text(generation.peer, inputs, {"beams": 1})[0][3]
        ids, score = their_text(generation.peer, inputs, {"beams": 1}, eos_token_id=end)
        search = {"max_new_tokens": 16, "beams": 1, "eos": frozenset({end})}
        mine = written(generation.ours, "<image>a photo of", photo, **search)
        assert list(mine.ids) == ids and mine.finished
        assert mine.score(1.0) == pytest.approx(score, rel=1e-5)


def test_without_a_prompt(generation: Pair, photos: list[Image.Image]) -> None:
    """No text: the photo and </s> alone, as transformers' generate does by itself."""
    inputs = generation.processor(images=photos[0], return_tensors="pt")
    ids = generation.peer.generate(**inputs, do_sample=False, max_new_tokens=8)[0, QUERIES + 1 :].tolist()
    assert list(written(generation.ours, "<image>", photos[0], max_new_tokens=8, beams=1).ids) == ids


def test_the_end_and_the_prompts_are_in_the_checkpoint(generation: Pair, instruct: Pair) -> None:
    newline = generation.processor.tokenizer.convert_tokens_to_ids("Ċ")
    bos = generation.processor.tokenizer.eos_token_id  # </s>: the configs name the line's end, the tokenizer this
    assert generation.ours.spec.search.eos == generation.ours.tokenizer.eos_ids == frozenset({newline, bos})
    assert instruct.ours.spec.search.eos == frozenset({2})
    config, _ = load_checkpoint(generation.target)
    assert config.prompts.caption == "<image>a photo of" and config.lm and set(config.lm.eos or ()) == {newline, bos}
    assert (generation.ours.engine.photos.pixels.mean, generation.ours.engine.photos.pixels.size) == (
        (0.4, 0.5, 0.6),
        SIZE,
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_instruct_blip(instruct: Pair, photos: list[Image.Image], beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Q-Former and the language model read the same prompt, of captions too."""
    ours, texts = instruct.ours, set()
    settings = {"beams": beams, "max_new_tokens": 16} | endless(instruct, beams, monkeypatch)
    asked = "Question: what is it? Short answer:"
    for photo in photos:
        for text, question in ((asked, "what is it?"), (ours.spec.prompts.caption.removeprefix("<image>"), None)):
            inputs = instruct.processor(images=photo, text=text, return_tensors="pt")
            read = read_instruction(ours, text, photo)
            reading = instruct.peer.get_image_features(
                inputs.pixel_values, inputs.qformer_input_ids, inputs.qformer_attention_mask
            )
            close(read, reading.qformer_outputs.last_hidden_state[:, :QUERIES])
            prompt = read_prompt(ours, f"<image>{text}", [photo], question).inputs
            close(ours.engine.lm.logits(ours.engine.lm(prompt)), instruct.peer(**inputs).logits)
            ids, _ = their_text(instruct.peer, inputs, {"beams": beams}, repetition_penalty=1.5)
            found = written(ours, f"<image>{text}", photo, question, **settings)
            assert list(found.ids) == ids
            plain = instruct.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if question:
                assert ours.ask(photo, question, **settings).text == plain
            else:
                assert ours.caption(photo, **settings).text == sentence(plain)
            texts.add(plain)
    assert len(texts) > len(photos)
    with pytest.raises(InputError, match="no heads of the first stage"):
        ours.match(photos, "a dog")


def test_words_of_an_answer_by_a_llama(instruct: Pair) -> None:
    """Its tokens decode without their spaces when alone."""
    ids = instruct.ours.tokenizer.encode("dog og d")
    assert words_of(instruct.ours.tokenizer, ids) == (("dog", "og", "d"), [(0, 2), (2, 4), (4, 5)])


def test_matching(retrieval: Pair, photos: list[Image.Image]) -> None:
    texts = ["a dog?", "two", "a cat on a mat"]
    words = retrieval.processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    pixels = retrieval.processor.image_processor(photos, return_tensors="pt").pixel_values
    cosine = retrieval.peer(pixels, **words).logits_per_image
    matches = retrieval.ours.match(photos, texts)
    assert [(m.image, m.text) for m in matches] == [(i, t) for i in range(4) for t in range(3)]
    close(torch.tensor([m.itc_cosine for m in matches]).view(4, 3), cosine)
    for i in range(4):
        pairs = retrieval.peer(pixels[i : i + 1].repeat(3, 1, 1, 1), **words, use_image_text_matching_head=True)
        logits = pairs.logits_per_image
        close(torch.tensor([m.itm_prob for m in matches[3 * i : 3 * i + 3]]), logits.softmax(-1)[:, 1])
        close(torch.tensor([m.rerank for m in matches[3 * i : 3 * i + 3]]), logits[:, 1] + cosine[i])
    assert len({round(m.itm_prob, 3) for m in matches}) > 6
    with pytest.raises(InputError, match="cannot write captions"):
        retrieval.ours.caption(photos[0])
    with pytest.raises(InputError, match="no language model"):
        retrieval.ours.ask(photos[0], "what?")


def test_traps(generation: Pair, photos: list[Image.Image]) -> None:
    """transformers leaves a photo without a placeholder out in silence: here its number is checked, and every photo counts."""
    ours = generation.ours
    for images, question in (
        (photos[:1], "is <image> like <image>?"),
        (photos[:2], "what is <image>?"),
        (photos[:3], "is <image> like <image>?"),
    ):
        with pytest.raises(InputError, match=f"{len(images)} pictures? but {question.count('<image>')} <image>"):
            ours.ask(images, question)

    def scores(*images: Image.Image, question: str) -> list[float]:
        answer = ours.ask(list(images), question, ["left", "right"])
        assert answer.scores is not None
        return list(answer.scores.values())

    for question in ("which?", "is <image> like <image>?"):
        both = scores(photos[0], photos[1], question=question)
        assert both == pytest.approx(scores(photos[0], photos[1], question=question), abs=1e-4)
        for others in ((photos[0], photos[2]), (photos[2], photos[1]), (photos[1], photos[0])):
            assert np.abs(np.subtract(scores(*others, question=question), both)).max() > 0.01
    (row,) = ours.read([ours.question_prompt(PictureQuestion(photos[:2], "which?"))])
    begins = ours.tokenizer.bos_id
    assert [len(piece) for piece in row.pieces[:4]] == [0, QUERIES, 0, QUERIES]  # both photos, then </s> and the text
    assert row.pieces[4] == [begins, *ours.tokenizer.encode("Question: which? Answer:")]


def test_a_batch_answers_as_its_items(generation: Pair, instruct: Pair, photos: list[Image.Image]) -> None:
    for ours in (generation.ours, instruct.ours):
        together = ours.caption(photos, beams=2, max_new_tokens=8)
        assert [a.text for a in together] == [ours.caption(p, beams=2, max_new_tokens=8).text for p in photos]
        questions = ["what?", "is it a dog?", "who is there?", "a"]
        answers = ours.ask(photos, questions, max_new_tokens=8)
        alone = [ours.ask(p, q, max_new_tokens=8).text for p, q in zip(photos, questions, strict=True)]
        assert [a.text for a in answers] == alone


def test_saved_again_and_in_half_the_bytes(generation: Pair, photos: list[Image.Image], tmp_path: Path) -> None:
    """A loaded model writes the same checkpoint; ``convert --half`` one of 16-bit floats."""
    loaded = load_blip2(generation.target)
    save_blip2(tmp_path / "again", loaded, loaded.config.card)
    first, second = (load_checkpoint(folder) for folder in (generation.target, tmp_path / "again"))
    first_config, second_config = (msgspec.structs.replace(x[0], files={}) for x in (first, second))
    assert first_config == second_config and first[0].files.keys() == second[0].files.keys()
    assert all(torch.equal(tensor, second[1][name]) for name, tensor in first[1].items())
    convert_checkpoint(generation.folder, tmp_path / "half", half=True)
    assert (
        1.8
        < np.divide(*((f / "triptych.safetensors").stat().st_size for f in (generation.target, tmp_path / "half")))
        < 2
    )
    assert load(tmp_path / "half", device="cpu").caption(photos[0]).text
