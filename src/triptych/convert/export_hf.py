"""BLIP-2 out again: a folder that transformers opens, with the same ids (``Blip2ForConditionalGeneration``, InstructBLIP) or scores
(``Blip2ForImageTextRetrieval``).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from triptych.checkpoints.config import CheckpointConfig
from triptych.checkpoints.format import load_typed
from triptych.checkpoints.store import Recipe, TensorStore, write_tensors
from triptych.checkpoints.tables.blip2 import HF_BLIP2
from triptych.checkpoints.tables.keys import Table
from triptych.checkpoints.tables.language import FAMILIES, family_of
from triptych.convert.architecture import GENERATION, INSTRUCT, RETRIEVAL
from triptych.convert.export_keys import complete, language_recipes, published_recipes
from triptych.errors import InputError, TriptychError
from triptych.io.files import check_unused
from triptych.io.pixels import FILTERS
from triptych.nn.configs import DecoderConfig, T5Config, ViTConfig
from triptych.systems.configs import Blip2Config
from triptych.text.prompt import IMAGE
from triptych.text.tokenizer import TextTokenizer
from triptych.text.wordpiece import WordPieces

HF_AXES = {  # theirs: how many axes of length 1 stand in front
    "query_tokens": 1,
    "vision_model.embeddings.position_embedding": 1,
    "vision_model.embeddings.class_embedding": 2,
}
NOT_THERE = ("heads.temperature", "heads.lm_")  # of the first stage: transformers has lost them
T5_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}  # ours: theirs


class ExportKind(NamedTuple):
    """What the model becomes: a class of transformers', the type of its language model (None = it has none) and that one's config."""

    architecture: str
    family: str | None
    text: dict[str, Any]

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former has words."""
        return self.architecture != GENERATION


def export_hf(directory: Path, target: Path) -> int:
    """Write the BLIP-2 in ``directory`` as a folder of transformers', in the dtypes that it is stored in.

    Returns:
        How many tensors were written.

    Raises:
        InputError: transformers has no class that computes what this model does (the message says why), or ``target`` is there.
        TriptychError: the disk is full or not writable.
    """
    config, tensors = load_typed(directory, "blip2", Blip2Config)
    vit, kind = exportable_vit(directory, config), exportable_kind(directory, config)
    settings = model_settings(directory, config, vit, kind)
    theirs = complete(tensors, recipes(tensors, config, kind), f"transformers' {kind.architecture}", NOT_THERE)
    check_unused(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in config.files:
            if name not in (config.weights, "vocab.txt"):
                shutil.copy(directory / name, target / name)
        if kind.reads_text:
            words = target if kind.architecture == RETRIEVAL else target / "qformer_tokenizer"
            write_word_pieces(words, WordPieces.read(directory / "vocab.txt"))
        for name, content in settings.items():
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_tensors(target / "model.safetensors", theirs)
    except OSError as error:
        raise TriptychError(f"cannot write {target}: {error.strerror or error}") from None
    return len(theirs)


def model_settings(
    directory: Path, config: CheckpointConfig[Blip2Config], vit: ViTConfig, kind: ExportKind
) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder, by name."""
    model: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": "instructblip" if kind.architecture == INSTRUCT else "blip-2",
        "vision_config": vision_config(vit),
        "qformer_config": exported_qformer(config.model, kind),
        "num_query_tokens": config.model.qformer.queries,
    }
    processors = {GENERATION: "Blip2Processor", RETRIEVAL: "Blip2Processor", INSTRUCT: "InstructBlipProcessor"}
    files = {
        "config.json": model,
        "preprocessor_config.json": image_processor(config),
        "processor_config.json": {"processor_class": processors[kind.architecture]},
    }
    if config.lm is None:
        model["image_text_hidden_size"] = config.model.feature_dim
        return files
    tokenizer = TextTokenizer.from_directory(directory)
    if IMAGE not in tokenizer.specials:
        raise InputError(f"{directory}: its tokenizer has no {IMAGE}, which transformers puts where the photo stands")
    eos = list(config.lm.eos or ())
    model |= {
        "text_config": kind.text | {"eos_token_id": eos[0] if len(eos) == 1 else eos},
        "image_token_index": tokenizer.specials[IMAGE],
        "tie_word_embeddings": kind.text["tie_word_embeddings"],
    }
    files["processor_config.json"]["num_query_tokens"] = config.model.qformer.queries
    return files | {"generation_config.json": generation_config(config, eos)}


def generation_config(config: CheckpointConfig[Blip2Config], eos: list[int]) -> dict[str, Any]:
    search = config.search
    return {
        "eos_token_id": eos,
        "num_beams": search.beams,
        "length_penalty": search.length_penalty,
        "max_new_tokens": search.max_new_tokens,
        "repetition_penalty": search.repetition_penalty,
        "min_new_tokens": search.min_new_tokens,
        "no_repeat_ngram_size": search.no_repeat_ngrams,
        "early_stopping": search.early_stopping,
        "bad_words_ids": [*map(list, search.banned_sequences)] or None,
    }


# What transformers can compute


def exportable_vit(directory: Path, config: CheckpointConfig[Blip2Config]) -> ViTConfig:
    vit = config.encoder.vit
    if vit is None:
        raise InputError(
            f"{directory} reads photos with the CNN {config.encoder.name}, for which transformers' BLIP-2 has no place"
        )
    sizes = {name: getattr(vit, name) for name in ("dim", "layers", "heads", "mlp_dim", "patch_size", "image_size")}
    if vit != ViTConfig.blip2(**sizes, eps=vit.eps, norm_after=True):
        raise InputError(f"{directory} reads photos with another vision transformer than BLIP-2's EVA")
    if config.model.normalise:
        raise InputError(f"{directory} norms the features once more, which transformers' BLIP-2 does not")
    return vit


def exportable_kind(directory: Path, config: CheckpointConfig[Blip2Config]) -> ExportKind:
    """Raises InputError: there is no class that computes it."""
    lm, reads_text = config.lm, bool(config.model.qformer.vocab_size)
    if lm is None:
        if config.model.feature_dim is None or not reads_text:
            raise InputError(f"{directory} has neither a language model nor the heads that match: nothing to export")
        return ExportKind(RETRIEVAL, None, {})
    if not lm.stored or lm.network is None:
        raise InputError(
            f"{directory} only names its language model {lm.name}: `triptych convert {directory} COPY --embed-lm` puts it inside"
        )
    if reads_text != config.prompts.whole or not config.prompts.published:
        raise InputError(f"{directory} is asked with prompts of its own, which transformers' classes do not make")
    architecture = INSTRUCT if reads_text else GENERATION
    kinds = [("t5", t5_text(lm.network))] if isinstance(lm.network, T5Config) else decoder_texts(lm.network)
    for family, text in kinds:
        try:
            same = FAMILIES[family].config(text)
        except InputError:
            continue
        if isinstance(same, T5Config):  # its config does not say whether the output layer is tied
            same = replace(same, tied=lm.network.tied)
        if same == lm.network:
            return ExportKind(architecture, family, text)
    raise InputError(f"{directory}: its language model is neither an OPT nor a Llama nor a T5, which can be written")


def decoder_texts(lm: DecoderConfig) -> list[tuple[str, dict[str, Any]]]:
    return [("opt", opt_text(lm)), ("llama", llama_text(lm))]


def t5_text(lm: T5Config) -> dict[str, Any]:
    """A tied T5 of transformers scales what its output layer reads: ``tie_word_embeddings`` says that it does so."""
    activation = T5_ACTIVATIONS.get(lm.activation, lm.activation)
    name = "gelu" if lm.gated and activation in ("gelu", "gelu_new") else activation
    return {
        "model_type": "t5",
        "vocab_size": lm.vocab_size,
        "d_model": lm.dim,
        "d_kv": lm.head_dim,
        "d_ff": lm.ffn_dim,
        "num_layers": lm.layers,
        "num_decoder_layers": lm.decoder_layers,
        "num_heads": lm.heads,
        "relative_attention_num_buckets": lm.buckets,
        "relative_attention_max_distance": lm.max_distance,
        "layer_norm_epsilon": lm.eps,
        "feed_forward_proj": f"gated-{name}" if lm.gated else name,
        "dense_act_fn": activation,
        "is_gated_act": lm.gated,
        "tie_word_embeddings": lm.scale_output,
        "decoder_start_token_id": lm.start_id,
        "pad_token_id": 0,
    }


def opt_text(lm: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": lm.vocab_size,
        "hidden_size": lm.dim,
        "num_hidden_layers": lm.layers,
        "num_attention_heads": lm.heads,
        "ffn_dim": lm.ffn_dim,
        "word_embed_proj_dim": lm.embed_width,
        "max_position_embeddings": lm.max_positions,
        "do_layer_norm_before": lm.pre_norm,
        "activation_function": lm.activation,
        "enable_bias": lm.qkv_bias,
        "tie_word_embeddings": lm.tied,
    }


def llama_text(lm: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": lm.vocab_size,
        "hidden_size": lm.dim,
        "num_hidden_layers": lm.layers,
        "num_attention_heads": lm.heads,
        "num_key_value_heads": lm.groups,
        "head_dim": lm.head_width,
        "intermediate_size": lm.ffn_dim,
        "max_position_embeddings": lm.max_positions,
        "rms_norm_eps": lm.eps,
        "rope_theta": lm.rope_theta,
        "attention_bias": lm.qkv_bias,
        "mlp_bias": lm.ffn_bias,
        "tie_word_embeddings": lm.tied,
    }


def vision_config(vit: ViTConfig) -> dict[str, Any]:
    return {
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "intermediate_size": vit.mlp_dim,
        "patch_size": vit.patch_size,
        "image_size": vit.image_size,
        "layer_norm_eps": vit.eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def exported_qformer(config: Blip2Config, kind: ExportKind) -> dict[str, Any]:
    own = config.qformer
    settings = {
        "hidden_size": own.dim,
        "num_hidden_layers": own.layers,
        "num_attention_heads": own.heads,
        "intermediate_size": own.mlp_dim,
        "encoder_hidden_size": own.image_dim,
        "cross_attention_frequency": own.cross_attn_every,
        "layer_norm_eps": own.eps,
        "max_position_embeddings": own.max_positions,
    }
    if kind.architecture == RETRIEVAL:
        settings["use_qformer_text_input"] = True
    return settings | ({"vocab_size": own.vocab_size} if kind.reads_text else {})


def image_processor(config: CheckpointConfig[Blip2Config]) -> dict[str, Any]:
    encoder = config.encoder
    square = {"height": encoder.image_size, "width": encoder.image_size}
    resized = square if encoder.shortest_side is None else {"shortest_edge": encoder.shortest_side}
    return {
        "image_processor_type": "BlipImageProcessor" if encoder.shortest_side is None else "CLIPImageProcessor",
        "do_resize": True,
        "size": resized,
        "do_center_crop": encoder.shortest_side is not None,
        "crop_size": square,
        "resample": FILTERS.index(encoder.resample),
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": encoder.mean,
        "image_std": encoder.std,
    }


def write_word_pieces(folder: Path, words: WordPieces) -> None:
    """The Q-Former's tokenizer as transformers opens it. Raises OSError."""
    folder.mkdir(exist_ok=True)
    words.save(folder / "tokenizer.json")
    names = {"bos": "[DEC]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}
    settings = {f"{name}_token": text for name, text in names.items()}
    content = json.dumps(settings | {"tokenizer_class": "BertTokenizer"}, indent=2)
    (folder / "tokenizer_config.json").write_text(content + "\n", encoding="utf-8")


# Tensors


def recipes(tensors: TensorStore, config: CheckpointConfig[Blip2Config], kind: ExportKind) -> dict[str, Recipe]:
    """Our tensors under transformers' names."""
    bridge = published_recipes(tensors, bridge_table(kind), HF_AXES)
    if kind.family is None or config.lm is None or config.lm.network is None:
        return bridge
    own = language_recipes(tensors, family_of(kind.text).table, config.lm.network, "language_model.")
    if not kind.text["tie_word_embeddings"] and "language_model.lm_head.weight" not in own:
        # a T5's, tied and not scaled
        own["language_model.lm_head.weight"] = Recipe(("lm.embedding.weight",), lambda x: x[0])
    return bridge | own


def bridge_table(kind: ExportKind) -> Table:
    """The rows of ``HF_BLIP2`` that this class has: where the Q-Former reads text, its embeddings and their norm lie elsewhere."""
    text = {
        GENERATION: ("qformer.layernorm",),
        RETRIEVAL: ("embeddings.", "qformer.layernorm"),
        INSTRUCT: ("qformer.embeddings.",),
    }[kind.architecture]
    others = ("embeddings.", "qformer.embeddings.", "qformer.layernorm")
    return {
        theirs: ours for theirs, ours in HF_BLIP2.items() if theirs.startswith(text) or not theirs.startswith(others)
    }
