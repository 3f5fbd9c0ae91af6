"""What the tests with other people's programs share. `make test-clients` runs them; the usual suite does not."""

import pytest
import torch
from pairs import Pair, make_batch, make_labels, make_pair


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    """Whether both embeddings and the output layer are one matrix."""
    return request.param


@pytest.fixture
def pair(tied) -> Pair:
    """Our model and MarianMT with equal weights."""
    return make_pair(tie_word_embeddings=tied)


@pytest.fixture(params=[1, 3], ids=["one row", "three rows"])
def batch(request) -> dict[str, torch.Tensor]:
    """Inputs of `forward`."""
    return make_batch(request.param)


@pytest.fixture
def labels(batch) -> torch.Tensor:
    """Labels for `batch`."""
    return make_labels(batch)
