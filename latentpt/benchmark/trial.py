"""Real steps of a training on the devices that are here, to learn what they take: before a run, writing nothing."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist

from latentpt.config import ConfigError
from latentpt.run import RunConfig
from latentpt.run.command import Start
from latentpt.thoughts.cost import schedule_cost
from latentpt.training.engine import Engine
from latentpt.training.learning_rate import learning_rate
from latentpt.training.trainer import Inputs, build_model, claimed_inputs, training_loss

ACCUMULATED = 2
"""Micro-batches of a step here: from the second on, the first one's gradients lie beside it."""
GIB = 2**30


@dataclass(frozen=True)
class Trial:
    """What a micro-batch size takes."""

    micro_batch: int
    seconds: float
    """Forward and backward of one micro-batch on the slowest rank."""
    step_seconds: float
    """The optimizer step."""
    flops: float
    """Of a micro-batch of one rank, by the schedule that it had."""
    peak: float
    """Bytes on the fullest rank: of tensors on a GPU, of the process on a CPU."""

    def tokens_per_second(self, config: RunConfig, ranks: int) -> float:
        """Of the whole training, as its global batch is cut into such micro-batches."""
        length = config.data.sequence_length
        batch = config.training.global_batch(length)
        micro_batches = batch / (self.micro_batch * ranks)
        return batch * length / (micro_batches * self.seconds + self.step_seconds)


class Trials:
    """Tries micro-batch sizes with one model and one optimizer; all ranks have one and call it alike."""

    def __init__(self, config: RunConfig, inputs: Inputs) -> None:
        settings, self.config, self.inputs = config.training, config, inputs
        self.model = build_model(config)
        self.engine = Engine(
            self.model, training_loss, config.optimizer, config.zero, settings.precision, 1, ACCUMULATED, inputs.device
        )  # fmt: skip
        self.end_token = inputs.data.eod_id if config.data.mask_documents else None
        self.step = 0

    def attempt(self, micro_batch: int) -> Trial:
        """Three steps: one to warm up, two that are measured. The fastest counts, the fullest too."""
        self._step(micro_batch)
        reset_peak(self.inputs.device)
        timed = [self._step(micro_batch) for _ in range(2)]
        seconds, step_seconds, flops = (min(values) for values in zip(*timed, strict=True))
        worst = torch.tensor([seconds, step_seconds, float(peak(self.inputs.device))], dtype=torch.float64)
        gathered = [torch.empty_like(worst) for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, worst)
        seconds, step_seconds, most = torch.stack(gathered).max(0).values.tolist()
        return Trial(micro_batch, seconds, step_seconds, flops, most)

    def _step(self, micro_batch: int) -> tuple[float, float, float]:
        """Seconds of a micro-batch and of the optimizer step, and a micro-batch's FLOPs."""
        config, device = self.config, self.inputs.device
        schedule = self.model.training_schedule(config.seed, self.step)
        rows = np.arange(micro_batch) + micro_batch * dist.get_rank()
        tokens = torch.from_numpy(self.inputs.data.read(rows, config.seed)).to(device)
        targets = torch.full((), float(tokens[:, 1:].numel()), device=device)
        moments = [now(device)]
        for _ in range(ACCUMULATED):
            self.engine.accumulate(tokens, schedule, None, self.end_token, targets)
            moments.append(now(device))
        self.engine.step(learning_rate(config.learning_rate, config.optimizer.lr, self.step, config.steps))
        moments.append(now(device))
        self.step += 1
        length = config.data.sequence_length
        cost = schedule_cost(config.model, self.model.method, schedule, length).total
        between = [b - a for a, b in itertools.pairwise(moments)]
        return min(between[:-1]), between[-1], cost * length * micro_batch


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Forget the most memory that was held so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not Linux, whose VmHWM begins anew
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The most bytes held since `reset_peak`; where a CPU's system does not say, those held now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return int(psutil.Process().memory_info().rss)


def sizes(config: RunConfig, ranks: int) -> list[int]:
    """Micro-batch sizes into which the global batch can be cut, the smallest first."""
    share = config.training.global_batch(config.data.sequence_length) // ranks
    return [size for size in range(1, share + 1) if share % size == 0]


def growing(
    attempt: Callable[[int], Trial], candidates: list[int], limit: float, speed: Callable[[Trial], float]
) -> Iterator[Trial]:
    """Try growing sizes while the next one's memory, as the last two predict it, stays below `limit` bytes.

    Ends, too, when two sizes one after another were not faster than the fastest before them.
    """
    done: list[Trial] = []
    slower = 0
    for size in candidates:
        if len(done) > 1 and _predicted(done[-2], done[-1], size) > limit:
            return
        try:
            trial = attempt(size)
        except torch.OutOfMemoryError:
            if dist.get_world_size() > 1:  # the others wait for this rank
                raise ConfigError(f"a micro-batch of {size} does not fit; try --memory with less") from None
            return
        if trial.peak > limit:
            return
        slower = slower + 1 if done and speed(trial) <= max(map(speed, done)) else 0
        done.append(trial)
        yield trial
        if slower == 2:
            return


def _predicted(first: Trial, second: Trial, size: int) -> float:
    """Memory of a size, on the line through two others."""
    slope = (second.peak - first.peak) / (second.micro_batch - first.micro_batch)
    return second.peak + slope * (size - second.micro_batch)


def find_micro_batch(
    config: RunConfig, start: Start, memory_gib: float | None, say: Callable[[str], object]
) -> None:
    """Say tokens/s and memory of growing micro-batch sizes within so much memory of a device, and which is the fastest.

    None: 0.95 of a GPU's memory, or of the host's memory that is free. Collective; `say` is called by all ranks alike. Raises ConfigError and
    DataError as the training would, and where no size fits.
    """
    with claimed_inputs(config, start) as inputs:
        ranks, device = dist.get_world_size(), inputs.device
        free = 0.95 * free_memory(device) / (1 if device.type == "cuda" else ranks)
        limit = memory_gib * GIB if memory_gib is not None else free
        trials = Trials(config, inputs)
        fastest: Trial | None = None

        def speed(trial: Trial) -> float:
            return trial.tokens_per_second(config, ranks)

        say(f"{device.type}, {ranks} ranks, at most {limit / GIB:.2f} GiB each, {trials.engine.description}")
        for trial in growing(trials.attempt, sizes(config, ranks), limit, speed):
            say(
                f"training.micro_batch={trial.micro_batch:<5} {speed(trial):>12,.0f} tokens/s {trial.peak / GIB:>8.2f} GiB"
            )
            if fastest is None or speed(trial) > speed(fastest):
                fastest = trial
        if fastest is None:
            raise ConfigError(
                f"a micro-batch of one sample does not fit {limit / GIB:.2f} GiB; a higher zero.stage, training.checkpoint_activations "
                "or more devices take less"
            )
        say(f"the fastest: training.micro_batch={fastest.micro_batch}")


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU, or of the host's memory that nobody uses."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().available)
