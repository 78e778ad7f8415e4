"""Show, Attend and Tell (Xu et al. 2015): a photo's grid of annotation vectors, and an LSTM that attends to them while it writes.

Equation numbers are the paper's. The paper's model and that of the widely used PyTorch tutorial are two settings of one config
(``ShowAttendTellConfig.paper``, ``.tutorial``).

Shapes: B photos, K captions (or beams) of each photo, T words, L grid cells, D width of an annotation vector, A ``attention_dim``,
n ``hidden_dim``, m ``embed_dim``, V words in the vocabulary. The K captions of a photo share its annotations: what depends on the
photo alone is computed once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import InputError
from triptych.nn.cnn import ConvNet
from triptych.systems.configs import ShowAttendTellConfig
from triptych.text.vocabulary import BOS

PHOTOS_IN_CACHE = 4  # on a CPU: the [K, L, A] activations of more photos do not fit its cache


class Attention(nn.Module):
    """f_att: a small network that scores each annotation vector against the LSTM's state."""

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.annotation_proj = nn.Linear(config.feature_dim, config.attention_dim)
        self.hidden_proj = nn.Linear(config.hidden_dim, config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1)
        self.activation_ = torch.tanh_ if config.score == "tanh" else torch.relu_  # in place: its input is large

    def forward(self, keys: Tensor, hidden: Tensor) -> Tensor:
        """``keys [B, L, A]`` (annotations, projected once), ``hidden [B, K, n]`` -> ``alpha [B, K, L]``, rows sum to 1."""
        photos = PHOTOS_IN_CACHE if keys.device.type == "cpu" else len(keys)
        parts = zip(torch.split(keys, photos), torch.split(self.hidden_proj(hidden), photos), strict=True)
        e = torch.cat([self.score(self.activation_(k[:, None] + q[:, :, None])) for k, q in parts])  # SAT eq. 4: e
        return e.squeeze(-1).softmax(-1)  # SAT eq. 5: alpha


class CaptionState(NamedTuple):
    """The state of decoding; a ``generate.State``."""

    annotations: Tensor  # [B, L, D]
    keys: Tensor  # [B, L, A]: the annotations, projected for the attention
    h: Tensor  # [B, K, n]
    c: Tensor  # [B, K, n]

    def reorder(self, rows: Tensor) -> CaptionState:
        """Row ``[b, k]`` continues the old row ``rows[b, k]``, counted over all photos.

        The rows of one photo stay together; photos may be dropped or reordered, and K may change.
        """
        annotations, keys = self.annotations, self.keys
        photos = rows[:, 0] // self.h.shape[1]
        if not torch.equal(photos, torch.arange(len(annotations), device=photos.device)):
            annotations, keys = annotations[photos], keys[photos]
        return CaptionState(annotations, keys, self.h.flatten(0, 1)[rows], self.c.flatten(0, 1)[rows])


class Step(NamedTuple):
    """The result of one step of the decoder."""

    h: Tensor  # [B, K, n]
    c: Tensor  # [B, K, n]
    z_hat: Tensor  # [B, K, D]
    alpha: Tensor  # [B, K, L]
    location_logprob: Tensor  # [B, K]: log p(s_t | a) of the chosen cell; 0 with soft attention


class Output(NamedTuple):
    """The result of teacher forcing."""

    logits: Tensor  # [B, K, T, V]
    alpha: Tensor  # [B, K, T, L]
    location_logprob: Tensor  # [B, K, T]


class CaptionDecoder(nn.Module):
    """The LSTM with attention: annotation vectors in, words out."""

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.config = config
        n, m, d = config.hidden_dim, config.embed_dim, config.feature_dim
        self.embedding = nn.Embedding(config.vocab_size, m)  # E
        self.attention = Attention(config)
        self.init_h, self.init_c = nn.Linear(d, n), nn.Linear(d, n)
        self.beta = nn.Linear(n, 1 if config.gate == "scalar" else d)
        self.lstm = nn.LSTMCell(m + d, n)
        self.dropout = nn.Dropout(config.dropout)
        if config.output == "deep":
            self.output_h, self.output_z = nn.Linear(n, m), nn.Linear(d, m, bias=False)  # L_h, L_z
        self.output = nn.Linear(m if config.output == "deep" else n, config.vocab_size)  # L_o
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def start(self, annotations: Tensor, rows: int) -> CaptionState:
        """The state before the first word, ``rows`` captions a photo. ``annotations [B, L, D]``."""
        mean = annotations.mean(1)
        h, c = self.init_h(mean), self.init_c(mean)  # SAT section 3.1.2: initial states
        if self.config.initial_state == "tanh":
            h, c = h.tanh(), c.tanh()
        keys = self.attention.annotation_proj(annotations)
        return CaptionState(annotations, keys, *(x[:, None].expand(-1, rows, -1) for x in (h, c)))

    def attend(self, state: CaptionState, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The context of the next word ``z_hat [B, K, D]``, the attention ``alpha [B, K, L]``, and log p(s) ``[B, K]``.

        Hard attention chooses one cell: drawn from ``alpha`` when a ``generator`` is given, else the most likely one.
        """
        alpha = self.attention(state.keys, state.h)
        if self.config.attention == "soft" or (self.training and generator is None):
            z_hat = alpha @ state.annotations  # SAT eq. 6, eq. 13: z_hat (expected context)
            location_logprob = alpha.new_zeros(alpha.shape[:-1])
        else:
            cell = choose_cell(alpha, generator)  # SAT eq. 8: s
            index = cell.expand(-1, -1, self.config.feature_dim)
            z_hat = state.annotations.gather(1, index)  # SAT eq. 9: z_hat (one cell)
            location_logprob = alpha.gather(-1, cell).squeeze(-1).clamp_min(1e-12).log()
        return torch.sigmoid(self.beta(state.h)) * z_hat, alpha, location_logprob  # SAT section 4.2.1: beta

    def advance(self, word_gates: Tensor, state: CaptionState, generator: torch.Generator | None = None) -> Step:
        """One LSTM step. ``word_gates [B, K, 4n]``: the previous word's share of the gates, from ``word_gates``.

        The gates' affine map T of (E y, h, z_hat) is a sum of three products, so that the word's share is computed for all words at once.
        """
        z_hat, alpha, location_logprob = self.attend(state, generator)
        context = F.linear(z_hat, self.lstm.weight_ih[:, self.config.embed_dim :])
        gates = word_gates + context + F.linear(state.h, self.lstm.weight_hh)
        i, f, g, o = gates.float().chunk(4, -1)  # SAT eq. 1: gates
        # The four are in the order of torch's LSTMCell.
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()  # SAT eq. 2: c
        h = (o.sigmoid() * c.tanh()).to(self.lstm.weight_hh.dtype)  # SAT eq. 3: h
        return Step(h, c, z_hat, alpha, location_logprob)

    def word_gates(self, embedded: Tensor) -> Tensor:
        """The previous words' share of the LSTM's gates: ``embedded [..., m]`` -> ``[..., 4n]``."""
        weight = self.lstm.weight_ih[:, : self.config.embed_dim]
        return F.linear(embedded, weight, self.lstm.bias_ih + self.lstm.bias_hh)

    def words(self, embedded: Tensor, h: Tensor, z_hat: Tensor) -> Tensor:
        """Logits ``[..., V]`` of the next word, from ``embedded [..., m]``, ``h [..., n]`` and ``z_hat [..., D]``."""
        if self.config.output == "linear":
            return self.output(self.dropout(h))
        deep = embedded + self.output_h(self.dropout(h)) + self.output_z(z_hat)
        return self.output(self.dropout(deep))  # SAT eq. 7: p(y)

    def forward(self, annotations: Tensor, input_ids: Tensor, generator: torch.Generator | None = None) -> Output:
        """Teacher forcing. ``annotations [B, L, D]``; ``input_ids [B, K, T]`` start with BOS, position t predicts word t + 1.

        ``generator``: for the cells that hard attention draws; without one, a model in training mode uses the expectation.
        """
        embedded = self.dropout(self.embedding(input_ids))
        gates = self.word_gates(embedded)
        state, steps = self.start(annotations, input_ids.shape[1]), []
        for t in range(input_ids.shape[2]):
            steps.append(self.advance(gates[:, :, t], state, generator))
            state = state._replace(h=steps[-1].h, c=steps[-1].c)
        h, _, z_hat, alpha, location_logprob = (torch.stack(x, 2) for x in zip(*steps, strict=True))
        return Output(self.words(embedded, h, z_hat), alpha, location_logprob)

    def prefill(self, annotations: Tensor) -> tuple[Tensor, CaptionState]:
        """``annotations [B, L, D]`` -> logits of the first word ``[B, V]``, and the state after BOS with one row for each photo."""
        bos = torch.full((len(annotations),), BOS, device=annotations.device)
        return self.step(bos, self.start(annotations, 1))

    def step(self, ids: Tensor, state: CaptionState) -> tuple[Tensor, CaptionState]:
        """One word for each row: ``ids [B * K]`` -> logits of the next ``[B * K, V]``, and the state after it."""
        embedded = self.embedding(ids).view(*state.h.shape[:2], -1)
        h, c, z_hat, _, _ = self.advance(self.word_gates(embedded), state)
        return self.words(embedded, h, z_hat).flatten(0, 1), state._replace(h=h, c=c)


def choose_cell(alpha: Tensor, generator: torch.Generator | None) -> Tensor:
    """One cell for each row of ``alpha [B, K, L]`` -> ``[B, K, 1]``: drawn with ``generator``, or without one the most likely."""
    if generator is None:
        return alpha.argmax(-1, keepdim=True)
    drawn = alpha.float().flatten(0, 1).multinomial(1, generator=generator)
    return drawn.view(*alpha.shape[:-1], 1)


class ShowAttendTell(nn.Module):
    """The whole system: a frozen image encoder, whose tail may be trained, and the decoder with attention."""

    def __init__(self, config: ShowAttendTellConfig, encoder: ConvNet) -> None:
        super().__init__()
        if config.feature_dim != encoder.dim:
            raise InputError(f"the decoder expects {config.feature_dim} channels, but {encoder.name} has {encoder.dim}")
        self.config = config
        self.encoder, self.decoder = encoder, CaptionDecoder(config)
        self.unfreeze()

    def unfreeze(self) -> None:
        """Make everything trainable except the encoder's trunk."""
        self.requires_grad_(True)
        self.encoder.layers[: self.encoder.cut].requires_grad_(False)

    def forward(self, maps: Tensor, input_ids: Tensor, generator: torch.Generator | None = None) -> Output:
        """Teacher forcing over the output of the encoder's trunk, ``maps [B, C, h, w]``; see ``CaptionDecoder.forward``."""
        return self.decoder(self.encoder.tail(maps), input_ids, generator)

    def prefill(self, maps: Tensor) -> tuple[Tensor, CaptionState]:
        """``maps [B, C, h, w]`` of the encoder's trunk -> logits of the first word ``[B, V]``, and the state after BOS."""
        return self.decoder.prefill(self.encoder.tail(maps))

    def step(self, ids: Tensor, state: CaptionState) -> tuple[Tensor, CaptionState]:
        """See ``CaptionDecoder.step``."""
        return self.decoder.step(ids, state)


def caption_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p(y | x), the first term of SAT eq. 14, the mean over words. ``logits [..., V]``, ``labels [...]``, -100 = ignored."""
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), label_smoothing=label_smoothing)


def doubly_stochastic_penalty(alpha: Tensor, mask: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """The second term of SAT eq. 14, without lambda: the attention to each cell should sum to about 1 over a caption.

    ``alpha [B, K, T, L]``; ``mask [B, K, T]``, True where a word is predicted. ``reduction`` over the grid: sum (paper) or mean (tutorial).
    The mean over captions.
    """
    attention = (alpha * mask[..., None]).float().sum(-2)  # [B, K, L]
    squares = (1 - attention) ** 2  # SAT section 4.2.1: doubly stochastic penalty
    return (squares.sum(-1) if reduction == "sum" else squares.mean(-1)).mean()


class HardAttentionLoss(nn.Module):
    """The variational bound of hard attention and its REINFORCE gradient with a moving baseline (SAT section 4.1)."""

    baseline: Tensor

    def __init__(self, reward_weight: float = 1.0, entropy_weight: float = 0.002) -> None:
        super().__init__()
        self.reward_weight, self.entropy_weight = reward_weight, entropy_weight
        self.register_buffer("baseline", torch.zeros(()))

    def forward(self, output: Output, labels: Tensor) -> Tensor:
        """A loss whose gradient is minus that of SAT eq. 12; moves the baseline. ``labels [B, K, T]``, -100 = ignored."""
        mask = labels != -100
        words = mask.sum(-1).clamp_min(1)
        logprobs = output.logits.float().log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
        bound = (logprobs * mask).sum(-1) / words  # SAT eq. 10: L_s, one draw, per word
        advantage = bound.detach() - self.baseline
        draws = (output.location_logprob * mask).sum(-1)  # log p(s | a) of all cells; ``advantage`` is per word already
        alpha = output.alpha.float()
        cell_entropy = -(alpha * alpha.clamp_min(1e-12).log()).sum(-1)  # SAT section 4.1: H[s]
        entropy = (cell_entropy * mask).sum(-1) / words
        gain = bound + self.reward_weight * advantage * draws + self.entropy_weight * entropy  # SAT eq. 12: REINFORCE
        self.baseline.lerp_(bound.detach().mean(), 0.1)  # SAT section 4.1: moving baseline
        return -gain.mean()
