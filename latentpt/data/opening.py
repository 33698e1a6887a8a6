"""From the data's configuration to what training and validation read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from latentpt.data.batches import TokenDataset, corpus_folders
from latentpt.data.config import DataConfig, SourceConfig
from latentpt.data.errors import DataError
from latentpt.data.mixture import Mixture


def open_training(config: DataConfig) -> TokenDataset | Mixture:
    """The corpus or the mixture that `config.train` names; raises DataError as they do."""
    train = config.train
    if isinstance(train, str):
        return TokenDataset(train, config.sequence_length)
    sources = [source for source in train if isinstance(source, SourceConfig)]
    if not sources:
        return TokenDataset([str(path) for path in train], config.sequence_length)
    datasets: dict[str, TokenDataset] = {}
    for source in sources:
        name = source.name or Path(source.path).name
        if name in datasets:
            raise DataError(f"data.train: two sources are named {name!r}; give each its own name")
        datasets[name] = TokenDataset(source.path, config.sequence_length)
    weights = [
        Fraction(str(source.weight))
        if source.weight is not None
        else Fraction(str(source.epochs)) * datasets[name].num_samples
        for name, source in zip(datasets, sources, strict=True)
    ]
    return Mixture(datasets, weights)


def open_validation(config: DataConfig) -> dict[str, TokenDataset]:
    """Held-out corpora by name: those of the configuration, or one for each shard folder inside the one named.

    A single shard folder has the name ''.
    """
    if isinstance(config.validation, dict):
        folders = {name: Path(path) for name, path in config.validation.items()}
    else:
        root = Path(config.validation)
        folders = {
            "" if path == root else path.relative_to(root).as_posix(): path for path in corpus_folders(root)
        }
    return {name: TokenDataset(path, config.sequence_length) for name, path in folders.items()}
