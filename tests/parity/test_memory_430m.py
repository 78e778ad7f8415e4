"""Memory of a BLIP-2 of 430 million parameters, in the widths of blip2-opt-2.7b and fewer layers, beside transformers in the same run.

Takes minutes and 2 GB of disk: ``pytest -m slow tests/parity/test_memory_430m.py -s`` prints the row of docs/checkpoints.md.
"""

from pathlib import Path

import pytest
import transformers
from test_blip2_transformers import QUERIES, byte_tokenizer
from test_memory import BESIDES, CONVERT, LOAD, peak, save_published

from triptych.models.memory import WIDTHS, bytes_needed, weights_in

VISION = {"hidden_size": 1408, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 4}
QFORMER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "encoder_hidden_size": 1408}
LANGUAGE = {"hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240, "num_hidden_layers": 2}
THEIRS = (
    "import transformers; transformers.Blip2ForConditionalGeneration.from_pretrained("
    "sys.argv[1], dtype=getattr(torch, sys.argv[2]))"
)


def published(folder: Path) -> int:
    """The model in four shards; returns the bytes of its weights in fp16."""
    tokenizer = byte_tokenizer()
    config = transformers.Blip2Config(
        vision_config=VISION | {"patch_size": 14, "image_size": 224},
        qformer_config=QFORMER | {"num_attention_heads": 12},
        text_config=transformers.OPTConfig(**LANGUAGE, num_attention_heads=32, vocab_size=50272, eos_token_id=2),
        num_query_tokens=QUERIES,
        image_token_index=len(tokenizer),
    )
    return 2 * save_published(folder, config, tokenizer, 4)


@pytest.mark.slow
def test_memory_beside_transformers(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    weights = published(tmp_path / "theirs")
    assert 420e6 < weights / 2 < 450e6
    largest = max(path.stat().st_size for path in (tmp_path / "theirs").glob("*.safetensors"))
    converting = peak(CONVERT, tmp_path / "theirs", tmp_path / "ours")
    loading = {dtype: peak(LOAD, tmp_path / "ours", dtype) for dtype in ("float16", "bfloat16", "float32")}
    theirs = {dtype: peak(THEIRS, tmp_path / "theirs", dtype) for dtype in ("float16", "float32")}
    print(
        f"\nweights {weights / 1e9:.2f} GB in fp16, largest shard {largest / 1e9:.2f} GB; convert {converting / 1e9:.2f} GB"
    )
    for dtype, width in (("float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32")):
        predicted = bytes_needed(weights_in(tmp_path / "ours"), WIDTHS[width])
        print(f"{dtype}: ours {loading[dtype] / 1e9:.2f} GB, predicted {predicted / 1e9:.2f} GB")
        assert loading[dtype] == pytest.approx(predicted, rel=0.1)
        assert loading[dtype] <= 1.15 * WIDTHS[width].itemsize * weights // 2 + BESIDES
    for dtype, taken in theirs.items():
        print(f"{dtype}: transformers {taken / 1e9:.2f} GB")
    assert converting <= 1.3 * largest + BESIDES
