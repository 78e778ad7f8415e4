"""Bounded texts of requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.serve.settings import TEXT_LIMIT

ModelName = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
RequiredText = Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
