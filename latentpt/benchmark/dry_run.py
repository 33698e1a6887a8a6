"""Everything that a training looks at before its first step, and what it would take; nothing is written.

data          sources, tokens, epochs, and the beginning of the first batch, decoded where there is a tokenizer
model         parameters, FLOPs
memory        of one device, part by part
time          measured here in a few real steps, or by a stated share of the peak; cost
disk          of checkpoints
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from latentpt.benchmark.devices import CPU, Device, device_of
from latentpt.benchmark.estimate import GIB, Estimate, Lines, duration, estimate, listed
from latentpt.benchmark.trial import Trials, free_memory
from latentpt.config import ConfigError
from latentpt.data.batches import SampleSource
from latentpt.data.errors import DataError
from latentpt.data.mixture import Mixture
from latentpt.data.tokenizer import Tokenizer, load_tokenizer
from latentpt.files import LOCK
from latentpt.hub.source import data_folders
from latentpt.run import RunConfig
from latentpt.run.checkpoints import step_of
from latentpt.run.command import Start
from latentpt.training.start import load_start
from latentpt.training.trainer import Inputs, build_model, claimed_inputs

SHOWN = 400
"""Characters of the first sample that are shown."""


@dataclass(frozen=True)
class Where:
    """What a training would run on, as it was asked; None: what is here."""

    devices: int | None = None
    device: str | None = None
    memory_gib: float | None = None
    mfu: float | None = None
    price: float | None = None


def dry_run(config: RunConfig, start: Start, where: Where) -> str:
    """Check and describe a training; collective, every rank gets the text.

    Raises ConfigError and DataError for what the training would refuse, and, with the whole description in the message,
    where it does not fit its devices.
    """
    with nothing_left(config.folder.path), claimed_inputs(config, start) as inputs:
        check_place(config)
        if inputs.claim.origin is None and config.training.start_from:
            load_start(config, build_model(config))
        devices = where.devices or dist.get_world_size()
        config.training.accumulation(config.data.sequence_length, devices)
        device = device_of(config, where.device, where.memory_gib, devices)
        found = estimate(config, devices, fused=device.name != CPU)
        speed = measured_speed(config, inputs, where, found)
        sections = [
            about_data(config, inputs),
            about_steps(config, inputs, devices) + about_size(config, found),
            found.memory_lines(device.memory, config.training.micro_batch),
            about_time(config, found, device, devices, where, speed),
            about_disk(config, found),
        ]
        text = "\n\n".join(listed(lines) for lines in sections)
    needed = found.device_bytes(config.training.micro_batch)
    if device.memory is not None and needed > device.memory:
        fits = found.largest_micro_batch(device.memory)
        way_out = f"training.micro_batch = {fits} is the largest that fits" if fits else "none fits"
        raise ConfigError(
            f"{text}\n\nit does not fit: {needed / GIB:.1f} GiB of {device.memory / GIB:.1f} on each device; {way_out}"
        )
    return text


def estimated(config: RunConfig, where: Where) -> str:
    """What a training would take by its configuration alone, in lines; data are not looked at and nothing is run."""
    devices = where.devices or 1
    device, found = device_of(config, where.device, where.memory_gib), estimate(config, devices)
    sections = [
        about_size(config, found),
        found.memory_lines(device.memory, config.training.micro_batch),
        about_time(config, found, device, devices, where, "give --mfu"),
    ]
    return "\n\n".join(map(listed, sections))


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Take away the lock that looking into a folder leaves where there was none."""
    locked = (folder / LOCK).exists()
    try:
        yield
    finally:
        if not locked:
            with suppress(FileNotFoundError, NotADirectoryError):
                (folder / LOCK).unlink()


def check_place(config: RunConfig) -> None:
    """Refuse a folder that could not be made or written."""
    place = config.folder.path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"output = {config.output}: {place} is no folder that can be written; choose another output"
        )


def about_data(config: RunConfig, inputs: Inputs) -> Lines:
    """Sources, tokens, epochs, the first sample."""
    data, samples = inputs.data, config.steps * config.training.global_batch(config.data.sequence_length)
    lines = [("data", f"{data.num_tokens:,} tokens in {data.num_samples:,} samples of {data.sample_length}")]
    if isinstance(data, Mixture):
        epochs = data.epochs(samples)
        lines += [
            (f"  {name}", f"{share:.2%} of the stream, {epochs[name]:.2f} epochs")
            for name, share in zip(data.names, data.shares, strict=True)
        ]
    else:
        lines.append(("  epochs", f"{samples / data.num_samples:.2f}"))
    for name, dataset in inputs.held_out.items():
        count = min(config.validation.samples or dataset.num_samples, dataset.num_samples)
        lines.append(
            (f"  held out {name}".rstrip(), f"{dataset.num_tokens:,} tokens, {count:,} samples are measured")
        )
    origin = inputs.claim.origin
    lines.append(("first batch", f"begins {beginning(config, data, step_of(origin) if origin else 0)}"))
    return lines


def beginning(config: RunConfig, data: SampleSource, step: int) -> str:
    """How the first sample of a step begins: its text where a tokenizer is at hand, else its ids."""
    position = step * config.training.global_batch(config.data.sequence_length)
    ids = data.read(np.array([position]), config.seed)[0].tolist()
    tokenizer = tokenizer_of(config)
    return (
        repr(tokenizer.decode(ids)[:SHOWN])
        if tokenizer is not None
        else f"{ids[:24]} (no tokenizer beside the data)"
    )


def tokenizer_of(config: RunConfig) -> Tokenizer | None:
    """The tokenizer beside the data, if there is one."""
    for folder in data_folders(config.data):
        with suppress(DataError):
            return load_tokenizer(folder)
    return None


def about_steps(config: RunConfig, inputs: Inputs, devices: int) -> Lines:
    """Where it begins, how long it is."""
    length, settings, origin = config.data.sequence_length, config.training, inputs.claim.origin
    begins = f"goes on from {origin.name}" if origin is not None else "begins anew"
    if origin is None and settings.start_from:
        begins += f" from {settings.start_from}"
    micro_batches = (
        f"{settings.micro_batch} x {settings.accumulation(length, devices)} micro-batches x {devices}"
    )
    return [
        ("training", f"{config.folder.path} {begins}"),
        ("steps", f"{config.steps:,} of {settings.global_batch(length)} samples = {micro_batches} devices"),
    ]


def about_size(config: RunConfig, found: Estimate) -> Lines:
    """Parameters and arithmetic."""
    cost, length, thoughts = found.cost, config.data.sequence_length, config.thoughts
    method = f"{config.model.family}, {thoughts.method} with {thoughts.num_thoughts} thoughts"
    return [
        ("parameters", f"{found.parameters:,} ({method})"),
        ("training FLOPs per token", f"{cost.total:.4g} ({cost.slots:.2f} trunk passes)"),
        ("inference FLOPs per token", f"{found.inference_flops:.4g} at {length} tokens"),
        ("training FLOPs", f"{found.tokens * cost.total:.4g} for {found.tokens:,} tokens"),
        ("cache per decoded token", f"{found.kv_bytes:,} bytes"),
    ]


def measured_speed(config: RunConfig, inputs: Inputs, where: Where, found: Estimate) -> float | str:
    """FLOP/s of one device in real steps of this training here, or why they were not made."""
    if where.mfu is not None:
        return "a share of the peak was given"
    if where.device is not None:
        return "a device was named: give --mfu"
    ranks = dist.get_world_size()
    if where.devices not in (None, ranks):
        return f"{where.devices} devices are not here: give --mfu, or start as many processes"
    needed = estimate(config, ranks, fused=inputs.device.type == "cuda").device_bytes(
        config.training.micro_batch
    )
    free = free_memory(inputs.device) / (1 if inputs.device.type == "cuda" else ranks)
    if needed > free:
        return f"{needed / GIB:.1f} GiB are needed here and {free / GIB:.1f} are free: give --mfu"
    trial = Trials(config, inputs).attempt(config.training.micro_batch)
    settings = config.training
    micro_batches = settings.accumulation(config.data.sequence_length, ranks)
    return trial.flops * micro_batches / (trial.seconds * micro_batches + trial.step_seconds)


def about_time(
    config: RunConfig, found: Estimate, device: Device, devices: int, where: Where, speed: float | str
) -> Lines:
    """Expected time and cost, with where they come from."""
    lines = [("devices", f"{devices} x {device.name}")]
    peak = f"{device.peak / 1e12:g} TFLOP/s" if device.peak is not None else "not known: monitor.peak_tflops"
    lines.append(("peak of one", f"{peak}, {config.training.precision}"))
    if where.mfu is not None and device.peak is not None:
        speed, origin = where.mfu * device.peak, f"computed: {where.mfu:.0%} of the peak"
    elif isinstance(speed, float):
        share = f", {speed / device.peak:.1%} of the peak" if device.peak is not None else ""
        origin = f"measured here in real steps{share}"
    else:
        return [
            *lines,
            ("time", f"not told ({speed if where.mfu is None else 'the peak of the device is not known'})"),
        ]
    seconds = found.seconds(speed * devices)
    lines += [
        ("speed", f"{speed / found.cost.total * devices:,.0f} tokens/s, {speed / 1e12:.4g} TFLOP/s a device ({origin})"),
        ("time", f"{duration(seconds)} without validation and checkpoints"),
    ]  # fmt: skip
    if where.price is not None:
        hours = seconds / 3600
        lines.append(("cost", f"{where.price * hours * devices:,.2f}, {where.price * hours:,.2f} a device"))
    return lines


def about_disk(config: RunConfig, found: Estimate) -> Lines:
    """What checkpoints take, and what is free."""
    one, keep = found.checkpoint_bytes, config.checkpoint
    kept = keep.keep_last + 1 + (config.steps // keep.keep_every if keep.keep_every else 0)
    place = config.folder.path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    warning = "" if kept * one < free else "; warning: they do not fit"
    return [
        ("a checkpoint", f"{one / GIB:.2f} GiB"),
        (
            "disk",
            f"{kept * one / GIB:.2f} GiB for {kept} checkpoints, {free / GIB:.1f} GiB are free{warning}",
        ),
    ]
