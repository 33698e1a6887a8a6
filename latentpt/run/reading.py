"""How a model reads: what an export says beside its weights, so that it is measured as the run it came from is."""

from __future__ import annotations

from pathlib import Path

from latentpt.config import Section, load_config, to_yaml
from latentpt.files import write_text

FILE = "reading.yaml"


class Reading(Section):
    """Samples as a model was trained on them."""

    sequence_length: int
    """Tokens of a sample."""
    mask_documents: bool = False
    """Whether the documents in a sample are kept apart."""


def write_reading(folder: Path, reading: Reading) -> None:
    """Leave it beside the weights of an export."""
    write_text(folder / FILE, to_yaml(reading))


def read_reading(model: str | Path) -> Reading | None:
    """What the folder of a model says; None where it says nothing, as others' do. Raises ConfigError for a broken file."""
    path = Path(model) / FILE
    return load_config(Reading, path) if path.is_file() else None
