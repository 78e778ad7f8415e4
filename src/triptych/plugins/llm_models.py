"""Models for Simon Willison's ``llm``: ``llm -m triptych/blip2 -a photo.jpg "What is in the photo?"``.

Found through the entry point ``llm`` once both packages are installed. Without a question the photo is captioned.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import llm

MODEL_NAMES = ("sat", "flamingo", "blip2")
IMAGES = {"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"}


@cache
def loaded_model(name: str) -> Any:
    from triptych.tasks import load

    return load(name)


class TriptychLLM(llm.Model):
    """One of the three systems as a model of ``llm``."""

    can_stream = False
    attachment_types = IMAGES

    def __init__(self, name: str) -> None:
        self.name, self.model_id = name, f"triptych/{name}"

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[str]:
        """The caption of one photo, or the answer to a question about all attached ones.

        Raises llm.ModelError: no photo, or a question to a model that only captions.
        """
        from triptych.errors import TriptychError
        from triptych.tasks import Answers

        earlier = [a for turn in (conversation.responses if conversation else ()) for a in turn.prompt.attachments]
        photos = [attachment.content_bytes() for attachment in (*earlier, *prompt.attachments)]
        question = (prompt.prompt or "").strip()
        if not photos:
            raise llm.ModelError("attach a photo: llm -m triptych/blip2 -a photo.jpg 'What is in the photo?'")
        try:
            model = loaded_model(self.name)
            if not question:
                yield model.caption(photos[-1]).text
            elif isinstance(model, Answers) and model.answers:
                yield model.ask(photos, question).text
            else:
                raise llm.ModelError(
                    f"{self.model_id} writes captions only: leave out the question, or use triptych/blip2"
                )
        except TriptychError as error:
            raise llm.ModelError(str(error)) from None


@llm.hookimpl
def register_models(register: Any) -> None:
    """Called by ``llm``: our models under the names ``triptych/NAME``."""
    for name in MODEL_NAMES:
        register(TriptychLLM(name))
