"""InstructBLIP over Vicuna as LAVIS saves it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_convert_lavis import (  # noqa: F401
    SIZES,
    VIT,
    WORDS,
    in_lavis_layout,
    own_words,
    photos,
    randomised,
    save_opt,
    saved,
    stage2,
)
from tiny_blip2 import byte_tokenizer
from tiny_decoder import as_transformers

from triptych.convert.checkpoint import convert_checkpoint
from triptych.errors import InputError
from triptych.nn.configs import DecoderConfig, QFormerConfig
from triptych.nn.decoder import Decoder
from triptych.nn.vit import ViT
from triptych.systems.blip2 import Blip2
from triptych.systems.configs import Blip2Config
from triptych.tasks import load
from triptych.tasks.blip2 import PhotoPrompt
from triptych.text.prompt import INSTRUCT_BLIP
from triptych.text.wordpiece import WordPieces


def test_instruct_blip_with_vicuna(tmp_path: Path, photos: list[Image.Image]) -> None:  # noqa: F811
    """``instruct_blip_vicuna7b_trimmed.pth``: its texts begin with the token that ends them, as LAVIS has it."""
    torch.manual_seed(4)
    tokenizer = byte_tokenizer()
    lm = Decoder(DecoderConfig(len(tokenizer), 24, 2, 2, 30, max_positions=128, tied=False))
    qformer = QFormerConfig(VIT.dim, **SIZES, vocab_size=len(WordPieces(WORDS)), max_positions=64)
    config = Blip2Config(qformer, feature_dim=None, instructed=True, writes=False)
    original = randomised(Blip2(config, ViT(VIT), lm))
    state = {key.replace("opt_proj", "llm_proj"): x for key, x in in_lavis_layout(original).items()}
    folder = tmp_path / "vicuna"
    folder.mkdir()
    settings = {"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2}
    settings |= {
        "num_attention_heads": 2,
        "intermediate_size": 30,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token_id": 256, "tie_word_embeddings": False}))
    save_file(as_transformers(lm, "llama"), folder / "model.safetensors")
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    report = convert_checkpoint(saved(tmp_path / "vicuna.pth", state), tmp_path / "ours", lm=folder)
    assert (set(report.mapped), report.missing, report.ignored) == (state.keys(), (), ())
    ours = load(tmp_path / "ours", device="cpu")
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours.engine.model.state_dict()[name], tensor), name
    assert ours.spec.prompts == INSTRUCT_BLIP and ours.spec.search.repetition_penalty == 1.5
    (row,) = ours.read([PhotoPrompt(ours.spec.prompts.caption, photos[:1])])
    assert row.pieces[2] == [256, *tokenizer.encode(ours.spec.prompts.caption.removeprefix("<image>"))]
    opt, other = stage2()
    with pytest.raises(InputError, match="goes with a Vicuna of width 24: give its directory"):
        convert_checkpoint(tmp_path / "vicuna.pth", tmp_path / "other", lm=save_opt(tmp_path / "opt", opt.lm, other))
