"""Memory of a BLIP-2 of 430 million parameters, in the widths of blip2-opt-2.7b and fewer layers, beside transformers in the same run.

Takes minutes and 2 GB of disk: ``pytest -m slow tests/parity/test_memory_430m.py -s`` prints the row of docs/checkpoints.md.
"""

from pathlib import Path

import pytest
import transformers
from test_blip2_transformers import QUERIES, byte_tokenizer
from test_memory import BESIDES, CONVERT, peak, peaks, save_published

from triptych.models.memory import WIDTHS, bytes_needed, weights_in

VISION = {"hidden_size": 1408, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 4}
QFORMER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "encoder_hidden_size": 1408}
LANGUAGE = {"hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240, "num_hidden_layers": 2}
PHOTO = "Image.new('RGB', (300, 200), (200, 120, 40))"
OURS = f"""
from PIL import Image
from triptych import load
model = load(sys.argv[1], device="cpu", precision=sys.argv[2])
print_peak()
model.caption({PHOTO}, beams=1, max_new_tokens=10)
"""
THEIRS = f"""
from PIL import Image
import transformers
dtype = {{"fp32": torch.float32, "fp16": torch.float16}}[sys.argv[2]]
model = transformers.Blip2ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=dtype)
processor = transformers.Blip2Processor.from_pretrained(sys.argv[1])
print_peak()
inputs = processor(images={PHOTO}, text="a photo of", return_tensors="pt")
model.generate(**inputs.to(dtype), do_sample=False, max_new_tokens=10)
"""


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
    weights = 2 * save_published(folder, config, tokenizer, 4)
    images = transformers.BlipImageProcessorPil(size={"height": 224, "width": 224})
    transformers.Blip2Processor(images, tokenizer, num_query_tokens=QUERIES).save_pretrained(folder)
    return weights


@pytest.mark.slow
def test_memory_beside_transformers(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    weights = published(tmp_path / "theirs")
    assert 420e6 < weights / 2 < 450e6
    largest = max(path.stat().st_size for path in (tmp_path / "theirs").glob("*.safetensors"))
    converting = peak(CONVERT, tmp_path / "theirs", tmp_path / "ours")
    print(f"\nweights {weights / 1e9:.2f} GB in fp16, largest shard {largest / 1e9:.2f} GB; peaks in GB:")
    print(f"convert {converting / 1e9:.2f}")
    for width in ("fp32", "fp16", "bf16"):
        loading, captioning = peaks(OURS, tmp_path / "ours", width)
        predicted = bytes_needed(weights_in(tmp_path / "ours"), WIDTHS[width])
        print(f"{width}: load {loading / 1e9:.2f}, caption {captioning / 1e9:.2f}, predicted {predicted / 1e9:.2f}")
        assert loading == pytest.approx(predicted, rel=0.1) and captioning <= 1.1 * predicted
        assert loading <= 1.15 * WIDTHS[width].itemsize * weights // 2 + BESIDES
        if width != "bf16":
            loading, captioning = peaks(THEIRS, tmp_path / "theirs", width)
            print(f"{width}: transformers: load {loading / 1e9:.2f}, caption {captioning / 1e9:.2f}")
    assert converting <= 1.3 * largest + BESIDES
