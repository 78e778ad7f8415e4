"""``logprobs`` and ``top_logprobs`` are those of a direct forward of the model, with the official client."""

from typing import Any

import numpy as np
import openai
import pytest
from serving import running
from tiny_blip2 import blip2_tasks
from toy_models import data_url, question

from triptych.logits import log_softmax
from triptych.tasks import Blip2Tasks
from triptych.tasks.asking import PictureQuestion
from triptych.tasks.words import tokenizer_spelling


class Forward:
    """The model's own log-probabilities behind a prompt and the tokens so far, each read anew."""

    def __init__(self, model: Blip2Tasks, text: str, **settings: Any) -> None:
        from triptych.io.images import load_image

        self.model, self.search = model, model.search(**settings)
        picture = PictureQuestion([load_image(data_url(60))], text)
        (self.row,) = model.read([model.question_prompt(picture)])

    def likeliest(self, ids: list[int], count: int) -> list[tuple[int, float]]:
        logits, _ = self.model.engine.prefill([[*self.row.pieces, ids] if ids else self.row.pieces])
        logprobs = log_softmax(logits, self.search.banned)[0]
        return [(int(i), float(logprobs[i])) for i in np.argsort(-logprobs, kind="stable")[:count]]


SETTINGS = [{"temperature": 0.0}, {"temperature": 1.3, "seed": 4}, {"temperature": 1.3, "seed": 4, "n": 2}]


@pytest.mark.parametrize("fields", SETTINGS)
def test_each_token_and_the_likeliest_at_its_place(fields: dict[str, Any]) -> None:
    model = blip2_tasks()
    spelling, text = tokenizer_spelling(model.tokenizer), "What is it?"
    body = question(data_url(60), text=text, max_tokens=4, logprobs=True, top_logprobs=5, **fields)
    with running({"blip2": model}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        reply = client.chat.completions.create(**body)
    forward = Forward(model, text)
    assert len(reply.choices) == fields.get("n", 1)
    for choice in reply.choices:
        assert choice.logprobs and choice.logprobs.content
        ids: list[int] = []
        for place, token in enumerate(choice.logprobs.content):
            wanted = forward.likeliest(ids, len(model.tokenizer))
            names = [(spelling.token(ids, i), p) for i, p in wanted[:5]]
            if not place:
                names = [(name.lstrip(), p) for name, p in names]
            assert [other.token for other in token.top_logprobs] == [name for name, _ in names]
            assert [other.logprob for other in token.top_logprobs] == pytest.approx([p for _, p in names], abs=1e-4)
            same = [
                i for i, p in wanted if spelling.token(ids, i).endswith(token.token) and abs(p - token.logprob) < 1e-4
            ]
            ids.append(same[0])
        assert len(ids) == 4 or choice.finish_reason == "stop"


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("ask", ["", "What is it?", "Is it red?"])
def test_a_stream_ends_with_those_of_the_whole_answer(ask: str, stopped: bool) -> None:
    """With its numbers of tokens, and where a stop ended it, too."""
    body = question(data_url(60), text=ask, max_tokens=4, logprobs=True, top_logprobs=2, temperature=1.3, seed=1)
    with running({"blip2": blip2_tasks()}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        if stopped:
            text = client.chat.completions.create(**body).choices[0].message.content or ""
            body["stop"] = [text[1:3]]
        answer = client.chat.completions.create(**body)
        options = {"include_usage": True}
        *parts, last, counts = client.chat.completions.create(**body, stream=True, stream_options=options)
    whole = answer.choices[0].logprobs
    assert whole and whole.content
    assert counts.usage == answer.usage and last.choices[0].finish_reason == answer.choices[0].finish_reason
    written = "".join(part.choices[0].delta.content or "" for part in parts)
    assert written == (answer.choices[0].message.content or "")[: len(written)] != ""
    streamed = last.choices[0].logprobs
    assert streamed and streamed.content
    assert [t.token for t in streamed.content] == [t.token for t in whole.content]
    assert [t.logprob for t in streamed.content] == pytest.approx([t.logprob for t in whole.content], abs=1e-4)


def test_a_scored_answer_is_one_token_among_the_choices() -> None:
    body = question(data_url(60), text="Is it red?", logprobs=True, top_logprobs=2)
    with running({"blip2": blip2_tasks()}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        choice = client.chat.completions.create(**body).choices[0]
    assert choice.logprobs and choice.logprobs.content
    (token,) = choice.logprobs.content
    assert token.token == choice.message.content and token.logprob == token.top_logprobs[0].logprob
    assert {other.token for other in token.top_logprobs} == {"yes", "no"}
    assert sum(np.exp(other.logprob) for other in token.top_logprobs) == pytest.approx(1)
