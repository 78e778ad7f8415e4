"""Caption metrics against `pycocoevalcap` on real captions: tokens alike, scores to 1e-4 and better."""

import contextlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triptych.evaluate.judgments import judgment_correlations
from triptych.metrics.captions import CaptionScores, score_each
from triptych.metrics.meteor import meteor
from triptych.metrics.tokenize import ptb_tokenize

pytestmark = pytest.mark.data
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


def captions(folder: Path, shards: str = "*.tar") -> Iterator[tuple[str, list[str]]]:
    for shard in sorted(folder.glob(shards)):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    record = json.load(file)
                    yield record["id"], record.get("captions", [])


def reference_scores(metric: Any, candidates: list[str], references: list[list[str]]) -> Any:
    truths = {i: [" ".join(ptb_tokenize(c)) for c in refs] for i, refs in enumerate(references)}
    hypotheses = {i: [" ".join(ptb_tokenize(c))] for i, c in enumerate(candidates)}
    with contextlib.redirect_stdout(io.StringIO()):
        return metric.compute_score(truths, hypotheses)


@pytest.fixture(scope="module", params=["own", "shuffled"])
def scored(flickr8k: Path, request: pytest.FixtureRequest) -> tuple[list[str], list[list[str]], CaptionScores]:
    """The first caption of each validation photo against the other four of that photo, or of any photo."""
    photos = [texts for _, texts in captions(flickr8k, "val-*.tar")]
    candidates, references = [texts[0] for texts in photos], [texts[1:] for texts in photos]
    if request.param == "shuffled":
        random.Random(0).shuffle(candidates)
    return candidates, references, score_each(candidates, references, meteor=False)


def test_bleu(scored: tuple[list[str], list[list[str]], CaptionScores]) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    candidates, references, ours = scored
    total, each = reference_scores(bleu.Bleu(4), candidates, references)
    names = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    assert [ours.total[name] for name in names] == pytest.approx(total, abs=1e-9)
    for name, scores in zip(names, each, strict=True):
        assert ours.each[name] == pytest.approx(scores, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "module", "peer"), [("ROUGE-L", "rouge.rouge", "Rouge"), ("CIDEr-D", "cider.cider", "Cider")]
)
def test_rouge_and_cider(
    scored: tuple[list[str], list[list[str]], CaptionScores], name: str, module: str, peer: str
) -> None:
    metric = getattr(pytest.importorskip(f"pycocoevalcap.{module}"), peer)()
    candidates, references, ours = scored
    total, each = reference_scores(metric, candidates, references)
    assert ours.total[name] == pytest.approx(total, abs=1e-9)
    assert ours.each[name] == pytest.approx(each, abs=1e-9)


@needs_java
def test_meteor(flickr8k: Path) -> None:
    """The peer runs the same program and takes long to start, so that its figures are written down here."""
    pytest.importorskip("pycocoevalcap")
    photos = [texts for _, texts in captions(flickr8k, "val-*.tar")][:150]
    hypotheses = [ptb_tokenize(texts[0]) for texts in photos]
    scores = meteor(hypotheses, [[ptb_tokenize(text) for text in texts[1:]] for texts in photos])
    assert scores is not None
    total, each = scores
    assert total == pytest.approx(0.262278, abs=1e-6)
    assert each[:6] == pytest.approx([0.110305, 0.300839, 0.251106, 0.058278, 0.174104, 0.271005], abs=1e-6)
    assert each.mean() == pytest.approx(0.267128, abs=1e-6)


@needs_java
def test_tokens_of_every_caption(flickr8k: Path, coco_mini: Path) -> None:
    peer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    texts = [text for folder in (flickr8k, coco_mini) for _, some in captions(folder) for text in some]
    assert len(texts) > 35_000
    theirs = peer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    differing = [text for i, text in enumerate(texts) if ptb_tokenize(text) != theirs[i][0].split()]
    assert not differing


def test_metrics_agree_with_people(flickr8k: Path) -> None:
    """Published tau-c on all of Flickr8k-Expert: BLEU-1 0.323, BLEU-4 0.308, ROUGE-L 0.323, CIDEr 0.439."""
    taus = judgment_correlations(
        flickr8k / "expert-judgments.jsonl", dict(captions(flickr8k, "test-*.tar")), meteor=False
    )
    published = {"BLEU-1": 0.323, "BLEU-4": 0.308, "ROUGE-L": 0.323, "CIDEr-D": 0.439}
    assert {metric: taus[metric] for metric in published} == pytest.approx(published, abs=0.05)
