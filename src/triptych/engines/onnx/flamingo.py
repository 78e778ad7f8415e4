"""Flamingo on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.engines.describe import describe_flamingo
from triptych.engines.interface import Array, FlamingoInputs, FlamingoSpec
from triptych.engines.onnx.cache import read_manifest
from triptych.engines.onnx.common import OnnxEncoder, Opened, floats, score_texts
from triptych.engines.onnx.joint import ENOUGH_ROWS, JointText, same_arrays
from triptych.engines.onnx.session import open_session
from triptych.engines.onnx.text import HIDDEN, ROOM, Arrays, Ids, OnnxLanguageModel, TextCache
from triptych.errors import InputError
from triptych.evidence import Floats
from triptych.systems.configs import FlamingoConfig


@dataclass
class OnnxFlamingoState:
    """Texts being read or written, with their pictures: a ``generate.State``. ``context``: the graph's inputs about the last pictures; None
    = not made yet."""

    text: TextCache
    pictures: list[list[Floats]]  # of each row, in order: keys and values [2 * J, H, R, d] of each picture
    pictures_read: list[int]  # of each row: the number of the picture that its last token attends to; 0 = none
    beams: int = 1  # rows of each input
    context: Arrays | None = None

    def reorder(self, rows: NDArray[np.int64]) -> OnnxFlamingoState:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``. This state must not be used afterwards."""
        rows = np.asarray(rows)
        beams, flat = rows.shape[1], rows.reshape(-1)
        same_inputs = beams == self.beams and len(flat) == len(self.pictures_read)
        same_inputs = same_inputs and np.array_equal(flat // beams, np.arange(len(flat)) // beams)
        return OnnxFlamingoState(
            self.text.reorder(rows),
            [self.pictures[row] for row in flat],
            [self.pictures_read[row] for row in flat],
            beams,
            self.context if same_inputs else None,
        )

    def last_pictures(self) -> list[Floats | None]:
        """The picture that the last token of each input attends to, shared by its rows."""
        inputs = zip(self.pictures[:: self.beams], self.pictures_read[:: self.beams], strict=True)
        return [pictures[last - 1] if 0 < last <= len(pictures) else None for pictures, last in inputs]

    def fork(self, rows: Sequence[int]) -> OnnxFlamingoState:
        """An independent copy whose row i continues the row ``rows[i]``."""
        pictures = [list(self.pictures[row]) for row in rows]
        return OnnxFlamingoState(self.text.fork(np.array(rows)), pictures, [self.pictures_read[row] for row in rows])

    def truncate(self, length: int, pictures: int) -> None:
        """Go back, in place, to the first ``length`` tokens of a single row, which contain ``pictures`` pictures."""
        self.text.truncate(length)
        self.pictures, self.pictures_read, self.context = [self.pictures[0][:pictures]], [pictures], None


class OnnxFlamingo(OnnxEncoder):
    """An ``interface.FlamingoEngine``. ``lm``: the language model with its gated blocks."""

    def __init__(self, opened: Opened, spec: FlamingoSpec, lm: OnnxLanguageModel) -> None:
        super().__init__(opened)
        self.spec, self.lm = spec, lm
        self.config: FlamingoConfig = opened.config.model
        self.resampler, self.media = (open_session(opened.folder / f"{name}.onnx") for name in ("resampler", "media"))

    def read(self, features: Sequence[Array], places: Sequence[int]) -> list[Floats]:
        (tokens,) = self.resampler.run(None, {"features": np.stack([floats(picture) for picture in features])})
        return list(tokens)

    def prefill(self, inputs: FlamingoInputs) -> tuple[Floats, OnnxFlamingoState]:
        """Read prompts, row by row: the logits ``[B, V]`` of the next token, and the state to continue with.

        Raises:
            InputError: the numbers of pictures and image tokens differ; a prompt is empty or too long.
        """
        rows = [np.array(row, np.int64) for row in inputs.rows]
        state: OnnxFlamingoState | None = inputs.state
        if state is None:
            cache = self.lm.start(len(rows), max(map(len, rows)) + ROOM)
            state = OnnxFlamingoState(cache, [[] for _ in rows], [0] * len(rows))
        state.context = None
        logits = []
        for row, (ids, tokens) in enumerate(zip(rows, inputs.visual_tokens, strict=True)):
            numbers = np.cumsum(ids == self.config.image_id)
            if len(ids) and numbers[-1] != len(tokens):
                raise InputError(
                    f"{len(tokens)} pictures for {numbers[-1]} image tokens in the text: give one for each"
                )
            state.pictures[row] = [*state.pictures[row], *self.keys_values(tokens)]
            times = numbers + state.pictures_read[row]
            if inputs.blind:
                times[:] = 0  # pictures are numbered from 1
            context = self.prompt_context(state.pictures[row], times)
            logits.append(self.lm.read(state.text, row, self.lm.embed(ids), context))
            state.pictures_read[row] = int(times[-1])
        return np.concatenate(logits), state

    def keys_values(self, visual_tokens: Sequence[Array]) -> list[Floats]:
        """The keys and values ``[2 * J, H, R, d]`` of each picture ``[R, D]`` for all gated blocks."""
        if not len(visual_tokens):
            return []
        (media,) = self.media.run(None, {"visual_tokens": np.stack([floats(picture) for picture in visual_tokens])})
        return [np.ascontiguousarray(media[:, p]) for p in range(len(visual_tokens))]

    def prompt_context(self, pictures: Sequence[Floats], times: Ids) -> Arrays:
        """The graph's inputs for S tokens of one row, each attending to the picture with the number ``times [S]``, from 1."""
        latents = self.config.latents
        media = np.concatenate(pictures or [self.no_picture()], 2)[:, None]
        number = np.repeat(np.arange(1, media.shape[3] // latents + 1), latents)
        bias = np.where(number == times[:, None], np.float32(0), np.float32(HIDDEN))
        sees = (times > 0) & (times <= len(pictures))
        return self.context(media, bias[None, None], sees)

    def step_context(self, pictures: Sequence[Floats | None], beams: int) -> Arrays:
        """The graph's inputs for one token of every row, attending to its input's picture or to none."""
        media = np.stack([self.no_picture() if picture is None else picture for picture in pictures], 1)
        bias = np.zeros((1, 1, beams, self.config.latents), np.float32)
        sees = np.array([picture is not None for picture in pictures])
        return self.context(media, bias, np.repeat(sees, beams))

    def no_picture(self) -> Floats:
        """Keys and values in the place of a picture that is not there: ``[2 * J, H, R, d]``."""
        config, gated = self.config, self.lm.config.layers // self.config.every
        return np.zeros((2 * gated, config.heads, config.latents, config.head_dim), np.float32)

    def context(self, media: Floats, bias: Floats, sees: NDArray[np.bool_]) -> Arrays:
        shape = np.array([media.shape[1], -1, self.config.heads * self.config.head_dim])
        arrays: dict[str, NDArray[Any]] = {
            "media_shape": shape,
            "media_bias": bias,
            "sees": sees.astype(np.float32)[:, None],
        }
        for index, array in enumerate(media):
            arrays[f"media_{('keys', 'values')[index % 2]}_{index // 2}"] = array
        return arrays

    def step(self, ids: Ids, state: OnnxFlamingoState) -> tuple[Floats, OnnxFlamingoState]:
        """One token for each row: ``ids [B * K]`` -> the logits ``[B * K, V]`` of the next."""
        if state.context is None:
            state.context = self.step_context(state.last_pictures(), state.beams)
        return self.lm.step(np.asarray(ids), state.text, state.context), state

    def joint_steps(self) -> JointFlamingo:
        return JointFlamingo(self)

    def score(self, logits: Array, state: OnnxFlamingoState, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        def context(tokens: int) -> Arrays:
            return self.prompt_context(state.pictures[0], np.full(tokens, state.pictures_read[0]))

        return score_texts(self.lm, floats(logits), state.text, texts, context)

    def maps(
        self, prompt: Sequence[int], features: Sequence[Array], ids: Sequence[int], blind_from: int | None = None
    ) -> Floats:
        return self.reference.maps(prompt, features, ids, blind_from)

    def gates(self) -> list[tuple[float, float]]:
        return [(attention, ffw) for attention, ffw in read_manifest(self.opened.folder)["gates"]]

    def info(self) -> dict[str, Any]:
        return self.with_precision(describe_flamingo(self.opened.config, self.photos, self.gates(), self.size))


class JointFlamingo:
    """An ``interface.JointSteps``: texts with equal numbers of beams are stepped together, each with its own last picture."""

    enough_rows = ENOUGH_ROWS

    def __init__(self, engine: OnnxFlamingo) -> None:
        self.engine = engine
        self.groups: dict[int, BeamGroup] = {}  # by beams

    def step(self, ids: Sequence[Ids], states: Sequence[OnnxFlamingoState]) -> list[tuple[Floats, OnnxFlamingoState]]:
        kinds = {state.beams for state in states}
        self.groups = {beams: self.groups.get(beams) or BeamGroup(self.engine, beams) for beams in kinds}
        logits: dict[int, Floats] = {}
        for beams, group in self.groups.items():
            members = [index for index, state in enumerate(states) if state.beams == beams]
            rows = group.step([ids[index] for index in members], [states[index] for index in members])
            logits |= zip(members, rows, strict=True)
        return [(logits[index], state) for index, state in enumerate(states)]


class BeamGroup:
    """Texts with equal numbers of beams. The graph's inputs about their last pictures are reused while the pictures are the same."""

    def __init__(self, engine: OnnxFlamingo, beams: int) -> None:
        self.engine, self.beams, self.text = engine, beams, JointText(engine.lm)
        self.pictures: list[Floats | None] = []
        self.context: Arrays = {}

    def step(self, ids: Sequence[Ids], states: Sequence[OnnxFlamingoState]) -> list[Floats]:
        """The logits of each state."""

        def context(order: Sequence[int]) -> Arrays:
            pictures = [picture for index in order for picture in states[index].last_pictures()]
            if not same_arrays(self.pictures, pictures):
                self.pictures, self.context = pictures, self.engine.step_context(pictures, self.beams)
            return self.context

        return [logits for logits, _ in self.text.step(ids, [state.text for state in states], context)]
