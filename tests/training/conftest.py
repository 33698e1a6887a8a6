"""Text shards for small trainings, written once."""

import pytest

from tests.training.small import write_text_shards


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with the shards train and validation."""
    folder = tmp_path_factory.mktemp("text")
    write_text_shards(folder, 100_000)
    return folder
