"""The page about a run: what came out, its curves, what it writes, what was measured, and how it was made."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentpt.config import options, to_yaml
from latentpt.evaluation.results import Measurement, number, said
from latentpt.pages.document import document, facts, picture, table, texts
from latentpt.pages.tables import duration, quantity
from latentpt.report.texts import SAMPLING, Written
from latentpt.run import RunConfig, RunFolder
from latentpt.run.provenance import provenance
from latentpt.thoughts.cost import inference_flops_per_token


def run_page(
    folder: RunFolder,
    config: RunConfig,
    lines: Sequence[Mapping[str, Any]],
    drawn: bytes,
    written: Sequence[Written],
    measured: Sequence[Measurement],
) -> str:
    """HTML that needs no other file; its links lead to what else is in the folder."""
    name = folder.path.resolve().name
    made = provenance([folder])
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f'<p class="sub">{html.escape(progress(folder, config, lines))}</p>',
        facts(outcome(config, lines) | made),
        picture("Loss, gradient norm, learning rate, residuals and speed over tokens", drawn),
        *_written(written),
        *_measured(measured, folder),
        "<h2>Configuration</h2>",
        facts(changed(config)),
        f"<details><summary>all of it</summary><pre>{html.escape(to_yaml(config))}</pre></details>",
        "<h2>In the folder</h2>",
        links(folder),
    ]
    return document(name, parts)


def progress(folder: RunFolder, config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """How far the training has come."""
    if not lines:
        return "Nothing is measured yet."
    last = lines[-1]
    state = "finished" if folder.summary.is_file() else "not finished"
    return (
        f"{state}: step {last['step']:,} of {config.steps:,}, {quantity(last['tokens'])} tokens, "
        f"{quantity(last['training_flops'])} training FLOPs, {duration(last['seconds'])} of training"
    )


def outcome(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The figures of a run by their names."""
    found = {"model": model_in_words(config), "thoughts": thoughts_in_words(config)}
    trained = [line for line in lines if line["kind"] == "train"]
    validated = [line for line in lines if line["kind"] == "validation" and line["loss"] is not None]
    if validated:
        best = min(validated, key=lambda line: line["loss"])
        words = f"{validated[-1]['loss']:.4f} nats a token"
        if best is not validated[-1]:
            words += f" (best {best['loss']:.4f} at step {best['step']:,})"
        found["validation loss"] = words
    if trained:
        last = trained[-1]
        if last["loss"] is not None:
            found["training loss"] = f"{last['loss']:.4f} nats a token"
        speed = last["tokens"] / max(last["seconds"], 1e-9)
        mfu = "" if last["mfu"] is None else f", MFU {last['mfu']:.1%}"
        found["speed"] = f"{quantity(speed)} tokens a second{mfu}"
        skipped = f", {last['skipped']} skipped" if last["skipped"] else ""
        batch = config.training.global_batch(config.data.sequence_length)
        found["steps"] = f"{batch} samples of {config.data.sequence_length:,} tokens each{skipped}"
    return found


def model_in_words(config: RunConfig) -> str:
    """The decoder."""
    model = config.model
    return (
        f"{model.family}, {model.num_layers} layers of width {model.hidden_size:,}, {model.num_heads} heads, "
        f"{model.vocab_size:,} tokens, {model.max_positions:,} positions"
    )


def thoughts_in_words(config: RunConfig) -> str:
    """What is thought before every token, and what that costs."""
    thoughts = config.thoughts
    cost = quantity(inference_flops_per_token(config.model, thoughts, config.data.sequence_length))
    count = f", {thoughts.num_thoughts} a token, {thoughts.visibility}" if thoughts.num_thoughts else ""
    return f"{thoughts.method}{count}; {cost} FLOPs a decoded token"


def changed(config: RunConfig) -> dict[str, str]:
    """Options that are not at their defaults, by dotted key."""
    found = {}
    for path, field in options(RunConfig):
        section: Any = config
        for name in path[:-1]:
            section = None if section is None else getattr(section, name)
        if section is None:
            continue  # one that may be null, and is
        value = getattr(section, path[-1])
        if field.is_required() or value != field.get_default(call_default_factory=True):
            found[".".join(path)] = _plain(value)
    return found


def _plain(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=lambda section: section.model_dump(mode="json"))


def _written(written: Sequence[Written]) -> list[str]:
    if not written:
        return []
    rows = [(f"{number}", f"{one.prompt} ▸ {one.text}") for number, one in enumerate(written, start=1)]
    return [
        "<h2>What it writes</h2><p>After beginnings of held-out text, or prompts that were asked for, up to the mark ▸; sampled "
        f"at a temperature of {SAMPLING.temperature} among the {SAMPLING.top_k} likeliest tokens, with one fixed seed.</p>",
        texts(rows),
    ]


def _measured(measured: Sequence[Measurement], folder: RunFolder) -> list[str]:
    if not measured:
        command = f"python launch/eval.py --run {folder.path}"
        return [f"<h2>Evaluation</h2><p>None yet; <code>{html.escape(command)}</code> measures.</p>"]
    rows = [
        (
            one.name, metric, number(value), number(one.figures.errors[metric]) if metric in one.figures.errors else "",
            f"{one.figures.items:,}", "" if one.step is None else f"{one.step:,}", said(one.settings), one.date,
        )
        for one in measured
        for metric, value in one.figures.metrics.items()
    ]  # fmt: skip
    head = ("what", "metric", "value", "standard error", "items", "step", "asked", "measured")
    pages = sorted(folder.evaluation.glob("diagnostics*.html"))
    said_of = [
        f"<p>Are the thoughts used? {', '.join(_link(page, folder.path) for page in pages)}</p>"
    ] if pages else []  # fmt: skip
    return ["<h2>Evaluation</h2>", *said_of, f'<div class="wide">{table(head, rows)}</div>']


def links(folder: RunFolder) -> str:
    """The files of the run that are there, as a list."""
    files = {
        folder.config: "resolved configuration",
        folder.versions: "packages, git revision, command, machine, date",
        folder.metrics: "every measurement, one JSON object a line",
        folder.summary: "the outcome",
        folder.picture: "the curves above",
        folder.texts: "the texts above",
        folder.tensorboard: f"tensorboard --logdir {folder.path}",
        folder.checkpoints: "safetensors",
        folder.evaluation / "results.json": "everything that launch/eval.py measured",
    }
    items = (
        f"<li>{_link(path, folder.path)}: {html.escape(words)}</li>"
        for path, words in files.items()
        if path.exists()
    )
    return "<ul>" + "".join(items) + "</ul>"


def _link(path: Path, base: Path) -> str:
    target = html.escape(path.relative_to(base).as_posix())
    return f'<a href="{target}">{target}</a>'
