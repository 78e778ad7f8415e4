"""A server of toy models in this process."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from serving import client_of


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client
