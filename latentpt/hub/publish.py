"""The export command: a run or a model, with its tokenizer and its figures, as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from latentpt.data.errors import DataError
from latentpt.evaluation.results import of_weights, read_results
from latentpt.hub.card import model_card, run_figures
from latentpt.hub.folders import export_folder, loading_class, special_ids, unrolled
from latentpt.hub.source import Source, open_source
from latentpt.hub.weights import read_json
from latentpt.run.reading import Reading, write_reading
from latentpt.thoughts.identity import identity


def publish(arguments: argparse.Namespace) -> str:
    """Do what launch/export.py was asked to; returns a sentence that says how to load the folder."""
    source = open_source(arguments)
    try:
        tokenizer = source.tokenizer()
    except DataError:
        if arguments.tokenizer is not None:
            raise
        tokenizer = None
    output = Path(arguments.output)
    model = unrolled(source.model) if arguments.unroll else source.model
    title = arguments.name or output.resolve().name
    loader = loading_class(model)
    card = model_card(title, model, loader, _figures(source, arguments))
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    ids = special_ids(arguments.model) if source.run is None else {}
    lacking = export_folder(model, output, tokenizer, card, dtype, ids)
    if source.run is not None:
        data = source.run.data
        write_reading(
            output, Reading(sequence_length=data.sequence_length, mask_documents=data.mask_documents)
        )
    without = "" if tokenizer is not None else " (without a tokenizer: none was at hand)"
    if lacking:
        without = f" (with its tokenizer.model alone: {lacking})"
    trust = ", trust_remote_code=True" if loader == "LatentptForCausalLM" else ""
    return f'wrote {output}{without}; load it with AutoModelForCausalLM.from_pretrained("{output}"{trust})'


def _figures(source: Source, arguments: argparse.Namespace) -> dict[str, str]:
    """What a run knows about itself: its summary, and what launch/eval.py found about these weights, no others."""
    if source.run is None:
        return {"imported from": source.name}
    folder = Path(arguments.run)
    figures = {"run": source.name}
    if arguments.step is not None:
        figures["step"] = f"{arguments.step:,}"
    summary = folder / "summary.json"  # it is about the last step
    known = read_json(summary) if arguments.step is None and summary.is_file() else {}
    evaluated = of_weights(read_results(folder / "evaluation"), identity(source.model))
    return figures | run_figures(known, evaluated)
