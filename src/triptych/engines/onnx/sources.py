"""The sources of graphs: a checkpoint's config, its weights, and its frozen parts, which may be inside the checkpoint or fetched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from triptych.checkpoints.config import CheckpointConfig, LanguageModelSpec
from triptych.checkpoints.gguf_models import open_gguf
from triptych.checkpoints.hub import language_model_path
from triptych.checkpoints.locate import weights_hash
from triptych.checkpoints.parts import PARTS, part_fingerprint, part_path
from triptych.engines.onnx.convolutions import Convolution, published_convolutions, stored_convolutions
from triptych.engines.onnx.coverage import NotCoveredError, check_language_model
from triptych.engines.onnx.legacy_torch import read_torch_file
from triptych.engines.onnx.weights import CheckpointWeights, GGUFWeights, Weights
from triptych.errors import InputError
from triptych.nn import efficientnet
from triptych.nn.configs import DecoderConfig
from triptych.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class LanguageModelSource:
    config: DecoderConfig
    weights: Weights
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class Source:
    """A checkpoint. Its weights are read at their first use."""

    directory: Path
    config: CheckpointConfig[Any]

    @property
    def cut(self) -> int:
        """The number of frozen layers of the image encoder."""
        cut = self.config.encoder.cut
        return len(efficientnet.LAYERS) if cut is None else cut

    @cached_property
    def weights(self) -> CheckpointWeights:
        return CheckpointWeights.read(self.directory / self.config.weights)

    def convolutions(self, prefix: str) -> dict[str, Convolution]:
        """The convolutions of the image encoder; ``prefix``: of their names in the checkpoint, if it stores them."""
        spec = self.config.encoder
        if spec.stored:
            return stored_convolutions(self.weights, prefix)
        if spec.sha256 != part_fingerprint(spec.name):
            raise InputError(
                f"{self.directory} was trained over another {spec.name} than this version fetches: use the version that trained it"
            )
        return published_convolutions(read_torch_file(part_path(spec.name)))

    @cached_property
    def language_model(self) -> LanguageModelSource:
        """Raises NotCoveredError: a folder, added tokens, or an architecture without a graph; InputError: another one than in training."""
        spec = self.config.lm
        assert spec is not None
        if spec.stored:
            if spec.decoder is None or spec.eos is None:
                raise NotCoveredError(f"the language model {spec.name}")
            check_language_model(spec.name, spec.decoder)
            tokenizer = replace(TextTokenizer.from_directory(self.directory), eos_ids=frozenset(spec.eos))
            return LanguageModelSource(spec.decoder, self.weights.below("lm."), tokenizer)
        file, architecture, config = open_gguf(self.language_model_file(spec))
        check_language_model(spec.name, config)
        weights = GGUFWeights(file, architecture.table, config.heads, config.groups)
        return LanguageModelSource(config, weights, TextTokenizer.from_gguf(file.metadata))

    def language_model_file(self, spec: LanguageModelSpec) -> Path:
        """The GGUF file that the checkpoint names. Raises as ``language_model``."""
        if spec.name in {part.name for part in PARTS}:
            if spec.sha256 != part_fingerprint(spec.name):
                raise InputError(
                    f"{self.directory} was trained with another {spec.name} than this version fetches: use the version that trained it"
                )
            return part_path(spec.name)
        if spec.file_sha256 is None or spec.added_tokens:
            raise NotCoveredError(f"the language model {spec.name}")
        path = language_model_path(spec.name, self.directory)
        if weights_hash(path) != spec.file_sha256:
            raise InputError(f"{self.directory} was trained with another {spec.name} than is there now")
        return path
