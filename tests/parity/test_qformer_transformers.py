"""Our Q-Former and its heads against transformers' BLIP-2, InstructBLIP and BERT on tiny random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triptych.checkpoints.parts import part_path
from triptych.checkpoints.store import load_tensors
from triptych.checkpoints.tables.blip2 import HF_BLIP2, load_bert
from triptych.checkpoints.tables.keys import load
from triptych.errors import InputError
from triptych.nn.configs import QFormerConfig, ViTConfig
from triptych.nn.qformer import QFormer, QFormerHeads
from triptych.nn.vit import ViT
from triptych.systems.blip2_losses import itc_similarity
from triptych.text.wordpiece import WordPieces

transformers = pytest.importorskip("transformers")

SIZES = {"dim": 32, "layers": 4, "heads": 4, "mlp_dim": 48, "queries": 6, "vocab_size": 50, "max_positions": 20}
PEER_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
VISION = {"dim": 24, "layers": 2, "heads": 4, "mlp_dim": 40, "patch_size": 4, "image_size": 12}
PEER_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "patch_size": 4,
    "image_size": 12,
}
TEXTS = torch.tensor([[5, 9, 31, 2], [5, 40, 0, 0], [5, 7, 8, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


class Parts(nn.Module):
    """The parts of BLIP-2 under the names of the tables."""

    def __init__(self, text: bool, heads: bool, projection: int = 0) -> None:
        super().__init__()
        config = QFormerConfig(image_dim=24, **(SIZES | ({} if text else {"vocab_size": 0})))  # type: ignore[arg-type]
        self.vision_encoder, self.qformer = ViT(ViTConfig.blip2(**VISION)), QFormer(config)
        if heads:
            self.heads = QFormerHeads(config, feature_dim=16)
        if projection:
            self.projection = nn.Linear(32, projection)
        self.eval().requires_grad_(False)


def randomised(peer: nn.Module) -> Any:
    torch.manual_seed(17)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return peer.eval().requires_grad_(False)


def peer_config(kind: str = "Blip2", **others: Any) -> Any:
    qformer = PEER_SIZES | {"encoder_hidden_size": 24, "cross_attention_frequency": 2} | others
    text = {"hidden_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 30, "vocab_size": 60}
    text |= {"word_embed_proj_dim": 28}
    return getattr(transformers, f"{kind}Config")(
        vision_config=PEER_VISION,
        qformer_config=qformer,
        text_config=transformers.OPTConfig(**text),
        num_query_tokens=6,
        image_text_hidden_size=16,
        image_token_index=None,
    )


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


def test_retrieval() -> None:
    """Blip2ForImageTextRetrieval from pixels and words to ITC and ITM; it has no temperature and no language-model head."""
    peer = randomised(transformers.Blip2ForImageTextRetrieval(peer_config(use_qformer_text_input=True)))
    ours, state, pixels = Parts(text=True, heads=True), peer.state_dict(), torch.randn(3, 3, 12, 12)
    report = load(ours, state, HF_BLIP2, optional_prefixes=("heads.temperature", "heads.lm_"))
    assert set(report.mapped) == set(state) and not report.ignored
    assert set(report.missing) == {
        f"heads.{x}"
        for x in ("temperature", "lm_bias", "lm_dense.weight", "lm_dense.bias", "lm_norm.weight", "lm_norm.bias")
    }
    image = ours.qformer.image_keys_values(ours.vision_encoder(pixels))

    theirs = peer(pixels, TEXTS, MASK)
    image_features = ours.heads.image_features(ours.qformer.encode_image(image).queries)
    text_features = ours.heads.text_features(ours.qformer.encode_text(TEXTS, MASK).text)
    close(image_features, theirs.image_embeds)
    close(text_features, theirs.text_embeds)
    close(itc_similarity(image_features, text_features), theirs.logits_per_image)

    theirs = peer(pixels, TEXTS, MASK, use_image_text_matching_head=True)
    output = ours.qformer.encode_both(image, TEXTS, MASK)
    close(torch.cat([output.queries, output.text], 1), theirs.text_model_output.last_hidden_state)
    close(ours.heads.itm_logits(output.queries), theirs.logits_per_image)

    both = ours.qformer.encode_both(image, TEXTS.repeat(3, 1), MASK.repeat(3, 1))  # each photo with each text
    for i in range(3):
        pairs = peer(pixels[i : i + 1].repeat(3, 1, 1, 1), TEXTS, MASK, use_image_text_matching_head=True)
        close(ours.heads.itm_logits(both.queries)[3 * i : 3 * i + 3], pairs.logits_per_image)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_qformer_and_its_maps(every: int) -> None:
    config = transformers.Blip2QFormerConfig(**PEER_SIZES, encoder_hidden_size=24, cross_attention_frequency=every)
    config._attn_implementation = "eager"
    peer = randomised(transformers.Blip2QFormerModel(config))
    sizes = SIZES | {"vocab_size": 0, "cross_attn_every": every}
    ours = QFormer(QFormerConfig(image_dim=24, **sizes)).eval().requires_grad_(False)  # type: ignore[arg-type]
    state = {f"qformer.{key}": tensor for key, tensor in peer.state_dict().items()}
    state["query_tokens"] = torch.randn(1, 6, 32)
    assert not load(ours, state, HF_BLIP2, "qformer").ignored
    features = torch.randn(2, 10, 24)
    theirs = peer(
        state["query_tokens"].expand(2, -1, -1),
        encoder_hidden_states=features,
        output_attentions=True,
        return_dict=True,
    )
    output = ours.encode_image(ours.image_keys_values(features), with_maps=True)
    close(output.queries, theirs.last_hidden_state)
    cells = [maps.cells for maps in output.maps if maps.cells is not None]
    assert len(cells) == len(theirs.cross_attentions) == len(range(0, 4, every))
    for mine, their in zip(cells, theirs.cross_attentions, strict=True):
        close(mine, their.mean(1))


def test_conditional_generation() -> None:
    """Blip2ForConditionalGeneration from pixels to the soft prompt: no text side; the language model is another table's."""
    peer = randomised(transformers.Blip2ForConditionalGeneration(peer_config()))
    ours, state, pixels = Parts(text=False, heads=False, projection=28), peer.state_dict(), torch.randn(2, 3, 12, 12)
    report = load(ours, state, HF_BLIP2)
    assert not report.missing
    assert set(report.ignored) == {key for key in state if key.startswith("language_model.")}
    theirs = peer.qformer(
        peer.query_tokens.expand(2, -1, -1), encoder_hidden_states=peer.vision_model(pixels).last_hidden_state
    ).last_hidden_state
    image = ours.qformer.image_keys_values(ours.vision_encoder(pixels))
    close(ours.projection(ours.qformer.encode_image(image).queries), peer.language_projection(theirs))
    with pytest.raises(InputError, match="reads no text"):
        ours.qformer.encode_text(TEXTS, MASK)


def test_instruction() -> None:
    """InstructBLIP's queries read the question beside the photo."""
    peer = randomised(transformers.InstructBlipForConditionalGeneration(peer_config("InstructBlip")))
    peer.set_attn_implementation("eager")  # which returns its weights
    ours, state, pixels = Parts(text=True, heads=False, projection=28), peer.state_dict(), torch.randn(3, 3, 12, 12)
    report = load(ours, state, HF_BLIP2)
    assert not report.missing
    assert set(report.ignored) == {key for key in state if key.startswith("language_model.")}
    theirs = peer.qformer(
        TEXTS,
        attention_mask=torch.cat([torch.ones(3, 6, dtype=torch.long), MASK], 1),
        query_embeds=peer.query_tokens.expand(3, -1, -1),
        encoder_hidden_states=peer.vision_model(pixels).last_hidden_state,
        output_attentions=True,
    )
    image = ours.qformer.image_keys_values(ours.vision_encoder(pixels))
    output = ours.qformer.encode_both(image, TEXTS, MASK, with_maps=True)
    close(torch.cat([output.queries, output.text], 1), theirs.last_hidden_state)
    inner = [attention for attention in theirs.attentions if attention.shape[2] == 10]  # without the cross-attention's
    for mine, their in zip(output.maps, inner, strict=True):
        close(mine.inner, their.mean(1))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_text_side_begins_as_bert(prefix: str) -> None:
    sizes = PEER_SIZES | {"vocab_size": 49, "max_position_embeddings": 24}  # ours has [DEC] too, and reads 20
    peer = randomised(transformers.BertModel(transformers.BertConfig(**sizes)))
    state = {prefix + key: tensor for key, tensor in peer.state_dict().items()}
    ours = QFormer(QFormerConfig(image_dim=24, **SIZES)).eval().requires_grad_(False)  # type: ignore[arg-type]
    dec, queries = ours.word_embeddings.weight[49].clone(), ours.query_tokens.clone()
    report = load_bert(ours, state)
    assert set(report.ignored) == {f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias"}
    assert all(key == "query_tokens" or ".cross_attention." in key for key in report.missing)
    close(ours.encode_text(TEXTS, MASK).text, peer(TEXTS, MASK).last_hidden_state)
    torch.testing.assert_close(ours.word_embeddings.weight[49], dec)
    torch.testing.assert_close(ours.query_tokens, queries)
    for layer in ours.layers:
        for name, tensor in layer.query_mlp.state_dict().items():
            torch.testing.assert_close(tensor, layer.text_mlp.state_dict()[name])


def test_bert_of_another_size_is_refused() -> None:
    peer = transformers.BertModel(transformers.BertConfig(**(PEER_SIZES | {"num_hidden_layers": 3})))
    ours = QFormer(QFormerConfig(image_dim=24, **SIZES))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="BERT does not fit QFormer: missing layers"):
        load_bert(ours, peer.state_dict())
    with pytest.raises(InputError, match="not those of a BERT of 32 channels"):
        load_bert(ours, {"weight": torch.zeros(2)})


@pytest.mark.parts
def test_minilm() -> None:
    """The embedded text side encodes sentences as MiniLM does."""
    path = part_path("minilm-l6")
    state = load_tensors(path)
    ours = QFormer(QFormerConfig(image_dim=8)).eval().requires_grad_(False)
    load_bert(ours, state)
    peer = transformers.BertModel(
        transformers.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ).eval()
    peer.load_state_dict(state, strict=False)
    pieces = WordPieces.read(Path(part_path("minilm-l6", "vocab.txt")))
    ids, mask = pieces.encode(["A dog runs on the beach.", "Two people"])
    with torch.no_grad():
        theirs = peer(ids, mask.long()).last_hidden_state
    close(ours.encode_text(ids, mask).text, theirs)
    assert len(pieces) == ours.config.vocab_size
