"""Tables of keys for BLIP-2: transformers' and LAVIS's checkpoints, BERT for the Q-Former (how to read them: ``key_tables``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.checkpoints.place import LoadReport, load_strict
from triptych.checkpoints.tables.keys import HF_EVA, LAVIS_EVA, OPEN_CLIP_VISION, Table, translated
from triptych.errors import InputError
from triptych.nn.qformer import QFormer


def bert_layers(prefix: str, attention: str) -> Table:
    """The layers of a BERT, and what a Q-Former adds to them; ``attention``: the name of the projections' module."""
    layer, ours = f"{prefix}encoder.layer.*", "qformer.layers.*"
    rows: dict[str, str | tuple[str, ...]] = {}
    for theirs, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        for x in ("query", "key", "value"):
            rows[f"{layer}.{theirs}.{attention}.{x}"] = f"{ours}.{name}.attention.{x}"
        rows[f"{layer}.{theirs}.output.dense"] = f"{ours}.{name}.attention.out"
        rows[f"{layer}.{theirs}.output.LayerNorm"] = f"{ours}.{name}.norm"
    for theirs, name in (("", "text_mlp"), ("_query", "query_mlp")):
        rows[f"{layer}.intermediate{theirs}.dense"] = f"{ours}.{name}.up"
        rows[f"{layer}.output{theirs}.dense"] = f"{ours}.{name}.down"
        rows[f"{layer}.output{theirs}.LayerNorm"] = f"{ours}.{name}.norm"
    return rows


def bert(prefix: str) -> Table:
    """BERT's own layout, which LAVIS keeps."""
    return {
        f"{prefix}embeddings.word_embeddings": "qformer.word_embeddings",
        f"{prefix}embeddings.position_embeddings": "qformer.position_embeddings",
        f"{prefix}embeddings.LayerNorm": "qformer.norm",
        **bert_layers(prefix, "self"),
    }


HF_BLIP2: Table = {  # BLIP-2 for generation and for retrieval, InstructBLIP; without the language model
    **HF_EVA,
    "query_tokens": "qformer.query_tokens",
    "embeddings.word_embeddings": "qformer.word_embeddings",
    "embeddings.position_embeddings": "qformer.position_embeddings",
    "qformer.layernorm": "qformer.norm",
    "qformer.embeddings.word_embeddings": "qformer.word_embeddings",
    "qformer.embeddings.position_embeddings": "qformer.position_embeddings",
    "qformer.embeddings.layernorm": "qformer.norm",
    **bert_layers("qformer.", "attention"),
    "vision_projection": "heads.vision_proj",
    "text_projection": "heads.text_proj",
    "itm_head": "heads.itm_head",
    "language_projection": "projection",
}

LAVIS: Table = {  # the first and second stage, and InstructBLIP (llm_proj)
    **LAVIS_EVA,
    **{name.replace("visual.", "visual_encoder.", 1): ours for name, ours in OPEN_CLIP_VISION.items()},  # its ViT-L
    "query_tokens": "qformer.query_tokens",
    **bert("Qformer.bert."),
    "Qformer.cls.predictions.transform.dense": "heads.lm_dense",
    "Qformer.cls.predictions.transform.LayerNorm": "heads.lm_norm",
    "Qformer.cls.predictions.decoder.weight": "qformer.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "heads.lm_bias",
    "Qformer.cls.predictions.bias": "heads.lm_bias",
    "vision_proj": "heads.vision_proj",
    "text_proj": "heads.text_proj",
    "itm_head": "heads.itm_head",
    "temp": "heads.temperature",
    "opt_proj": "projection",
    "t5_proj": "projection",
    "llm_proj": "projection",
}

BERT: Table = {**bert(""), **bert("bert.")}


def load_bert(qformer: QFormer, state: Mapping[str, Tensor]) -> LoadReport:
    """Begin a Q-Former as a BERT of its size (MiniLM-L6, BERT-base); queries and cross-attention stay as they are.

    The queries' feed-forward layers become copies of the text's. BERT adds the embedding of its first segment to every word; the
    Q-Former knows no segments, so that it goes into the positions, of which there may be fewer than BERT's. [DEC], which BERT has
    not, keeps its initial embedding.

    Raises:
        InputError: the sizes differ.
    """
    translation, ignored = translated(state, BERT, "qformer")
    table = dict(translation)
    segments = next((key for key in ignored if key.endswith("embeddings.token_type_embeddings.weight")), None)
    try:
        words, positions = table["word_embeddings.weight"], table["position_embeddings.weight"]
        positions = positions[: qformer.config.max_positions]
        table["position_embeddings.weight"] = positions + state[segments][0] if segments else positions
        own = qformer.word_embeddings.weight.detach()
        table["word_embeddings.weight"] = torch.cat([words, own[len(words) :]])
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"the weights are not those of a BERT of {qformer.config.dim} channels: {error}") from None
    table |= {
        name.replace(".text_mlp.", ".query_mlp."): tensor for name, tensor in table.items() if ".text_mlp." in name
    }
    fresh = tuple(name for name in qformer.state_dict() if name == "query_tokens" or ".cross_attention." in name)
    missing = load_strict(qformer, table, source="BERT", optional_prefixes=fresh).missing
    left = tuple(key for key in ignored if key != segments)
    return LoadReport(tuple(key for key in state if key not in left), missing, left)
