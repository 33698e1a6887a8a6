"""The engine: a model under DeepSpeed, its optimizer step, and its state as whole tensors."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.run.sections import OptimizerConfig, ZeroConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule
from latentpt.training.engine.layout import Layout, shape_of
from latentpt.training.engine.optimizers import make_optimizer
from latentpt.training.engine.settings import deepspeed_config

if TYPE_CHECKING:
    from latentpt.training.engine.traces import Traces

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@contextlib.contextmanager
def without(words: str, logger: logging.Logger) -> Iterator[None]:
    """Messages of a logger that have these words are left out while the block runs."""

    def others(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


class _Root(nn.Module):
    """What DeepSpeed wraps: calls a function of the model in the arithmetic of the training.

    ZeRO-3 wants every use of the parameters to happen inside the forward of one outermost module.
    """

    def __init__(self, model: nn.Module, arithmetic: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self._arithmetic = model, arithmetic

    def forward(self, function: Callable[..., T], *inputs: Any) -> T:
        with self._arithmetic():
            return function(self.model, *inputs)


class Engine:
    """A model trained under DeepSpeed.

    Its methods are collective: every rank calls them in the same order. `loss(model, *inputs)` is the scalar whose
    mean over micro-batches and ranks is minimised.

    Attributes:
        model: the model, as it was given; its parameter names are the names of the training state.
        names, shapes: trainable parameters by name, and their whole shapes.
        applied: whether the last step changed the parameters.
        spent: told what has just ended: forward, backward, reduction (of what the backward left unreduced), optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: OptimizerConfig,
        zero: ZeroConfig,
        precision: str,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        fill: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """`fill` belongs to a LanguageModel on the meta device, at stage 3: it gives one of its units the first values."""
        import deepspeed

        if precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
            raise ConfigError(
                "training.precision = fp16 is not what this device computes in; the nearest is bf16"
            )
        world = dist.get_world_size()
        config = deepspeed_config(zero, optimizer, precision, micro_batch, accumulation, world)
        if fill is not None:
            from latentpt.training.engine.birth import bear

            assert isinstance(model, LanguageModel)
            bear(model.units(), fill, config, DTYPES[precision], device)
        self.model, self.device, self.zero, self.precision = model.to(device), device, zero, precision
        self.accumulation, self._loss, self.clip = accumulation, loss, optimizer.clip
        self.names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: shape_of(parameter) for name, parameter in self.names.items()}
        self.optimizer = make_optimizer(model, optimizer, precision, fused=device.type == "cuda")
        groups = [list(group["params"]) for group in self.optimizer.param_groups]
        by_muon = {p for group in self.optimizer.param_groups if group["muon"] for p in group["params"]}
        # Memory reports that cannot be turned off, and a warning of optimizers that others have not tried: we have.
        with contextlib.redirect_stdout(io.StringIO()), without("untested optimizer", deepspeed.utils.logger):
            self._engine, *_ = deepspeed.initialize(
                model=_Root(model, self._arithmetic),
                optimizer=self.optimizer,
                config=config,
                dist_init_required=False,
            )
        self.layout = Layout(self._engine.optimizer, zero.stage, self.names, self.shapes, groups)
        if zero.offload_optimizer not in (None, "cpu"):
            self.optimizer.room = Path(zero.offload_optimizer)
        muon = {name for name, parameter in self.names.items() if parameter in by_muon}
        self.optimizer.divide(model, self.layout, muon, device)
        self._traces: Traces | None = None
        if zero.stage == 3:
            from latentpt.training.engine.traces import Traces

            self._traces = Traces(self._engine.optimizer)
        self._average: list[Tensor] = []  # divided like the masters
        self._grad_norm: Tensor | float = 0.0
        self.applied = True
        self.spent: Callable[[str], None] = lambda what: None
        reduce = self._engine.allreduce_gradients

        def reduce_and_tell(*arguments: Any, **options: Any) -> None:
            self.spent("backward")
            reduce(*arguments, **options)
            self.spent("reduction")

        self._engine.allreduce_gradients = reduce_and_tell

    @property
    def description(self) -> str:
        """What runs the optimizer, for the opening lines of a run."""
        kind = "Muon and AdamW" if any(group["muon"] for group in self.optimizer.param_groups) else "AdamW"
        wrapper = f"{type(self._engine.optimizer).__name__} over " if self.zero.stage else ""
        return f"ZeRO {self.zero.stage}, {self.precision}, {wrapper}{kind}"

    @property
    def grad_norm(self) -> float:
        """Global gradient norm of the last step before clipping, inf when it was not finite."""
        return float(self._grad_norm)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast where bf16 arithmetic meets fp32 parameters, otherwise nothing."""
        enabled = self.precision == "bf16" and self.zero.stage == 0
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def call(self, function: Callable[..., T], *inputs: Any) -> T:
        """`function(model, *inputs)` without gradient, in the arithmetic of the training."""
        self._engine.eval()
        with torch.no_grad():
            result = self._run(function, *inputs)
        self._engine.train()
        return result

    def accumulate(self, *inputs: Any) -> Tensor:
        """Forward and backward of one micro-batch; returns its loss (a detached scalar on the device).

        The gradients of `accumulation` such calls are averaged, over micro-batches and ranks.
        """
        loss = self._run(self._loss, *inputs)
        self.spent("forward")
        self._engine.backward(loss)
        self.spent("backward")
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch
        return loss.detach()

    def _run(self, function: Callable[..., T], *inputs: Any) -> T:
        if self._traces is not None:
            self._traces.program = (function, *(each for each in inputs if isinstance(each, Schedule)))
        result: T = self._engine(function, *inputs)
        return result

    def step(self, lr: float, share: float = 0.0) -> None:
        """Update the parameters at learning rate `lr` after the last micro-batch, or skip a non-finite gradient.

        With a `share` the weights then enter their average, of which they make up so much; without, there is none.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        if self.zero.stage == 0:
            self._step_unpartitioned()
        else:
            self._step_partitioned()
        if share:
            self._follow(share)
        else:
            self._average = []
        self.spent("optimizer")

    def _step_partitioned(self) -> None:
        self._engine.step()
        # These buffers outlive the step, and would update a parameter that the next step does not use.
        if self.zero.offload_optimizer is not None:
            for master in self.layout.masters:
                if master.grad is not None:
                    master.grad.zero_()
        elif self.zero.stage == 3:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        self._grad_norm = self._engine.get_global_grad_norm()
        self.applied = self._engine.was_step_applied()

    def _step_unpartitioned(self) -> None:
        for parameter in self.names.values():
            # One that was not used in this step has none; the other stages take that for a gradient of zero.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.names.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.applied = bool(torch.isfinite(norm))
        self._grad_norm = norm if self.applied else float("inf")
        if self.applied and self.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.names.values(), self.clip, norm)
        if not self.applied:
            for parameter in self.names.values():
                parameter.grad = None  # AdamW leaves a parameter without gradient, and its moments, alone
        self._engine.step()

    # ------------------------------------------------------------------------------------------ average

    @property
    def averaged(self) -> bool:
        """Whether there is an average of the weights."""
        return bool(self._average)

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        masters = [master.detach() for master in self.layout.masters]
        if not self._average:
            self._average = [master.clone() for master in masters]
        torch._foreach_lerp_(self._average, masters, share)

    @contextlib.contextmanager
    def average(self) -> Iterator[None]:
        """Compute with the average of the weights, if there is one, while the block runs; collective."""
        self._exchange_average()
        yield
        self._exchange_average()

    def _exchange_average(self) -> None:
        """Let masters and average change places, which copies neither."""
        for master, average in zip(self.layout.masters, self._average, strict=bool(self._average)):
            master.data, average.data = average.data, master.data
        if self._average:
            self._refresh_parameters()

    # ------------------------------------------------------------------------------------------ looked at

    def gradients(self) -> dict[str, Tensor]:
        """By name this rank's parts of the gradient, flat or whole, between the last `accumulate` of a step and `step`.

        Whole on every rank at stage 0, divided among ranks otherwise; none where DeepSpeed keeps them on the host.
        """
        if self.zero.stage == 0:
            return {name: p.grad for name, p in self.names.items() if p.grad is not None}
        if self.zero.stage == 3:
            wrapper = self._engine.optimizer
            of = {id(parameter): name for name, parameter in self.names.items()}
            return {
                of[id(parameter)]: gradient
                for index, parts in wrapper.averaged_gradients.items()
                for parameter, gradient in zip(wrapper.fp16_groups[index], parts or (), strict=False)
            }
        parts = {}
        for name, parameter in self.names.items():
            here = parameter._hp_mapping  # type: ignore[attr-defined]
            if here is not None:
                with contextlib.suppress(ValueError):  # they are not kept where we could read them
                    part = here.get_lp_grad_fragment(parameter._index_in_param_group).flatten()  # type: ignore[attr-defined]
                    if part.numel() == parameter.numel():  # BF16_Optimizer has all of it on every rank
                        part = part.narrow(0, here.lp_fragment_address.start, here.lp_fragment_address.numel)
                    parts[name] = part
        return parts

    def weights(self) -> dict[str, Tensor]:
        """By name what this rank has of the parameters in the forward's precision: a part at stage 3, else all of each."""
        if self.zero.stage < 3:
            return {name: parameter.detach() for name, parameter in self.names.items()}
        parts = {}
        for name, parameter in self.names.items():
            part = parameter.ds_tensor  # type: ignore[attr-defined]
            beyond = parameter.ds_numel - part.numel() * dist.get_rank()  # type: ignore[attr-defined]
            parts[name] = part[: max(0, min(part.numel(), beyond))]  # the last ranks' are padded
        return parts

    # ------------------------------------------------------------------------------------------ state

    def moments(self, name: str) -> tuple[str, ...]:
        """Names of what the optimizer keeps of a parameter, each a tensor of its shape."""
        return self.optimizer.moments(name)

    def gather(self, name: str) -> dict[str, Tensor]:
        """The whole fp32 master weight of a parameter, as "weight", its moments, and its "average" if there is one.

        Every rank gets the tensors, on the device.
        """
        keys = ["weight", *self.moments(name), *(["average"] if self._average else [])]
        return {key: self.layout.gather(name, self._parts(key), self.device) for key in keys}

    def whole_parameters(self) -> AbstractContextManager[Any]:
        """Inside, every rank holds the model's parameters whole, frozen ones too, as they are computed with; collective."""
        if self.zero.stage < 3:
            return contextlib.nullcontext()
        from deepspeed import zero

        gathered: AbstractContextManager[Any] = zero.GatheredParameters(list(self.model.parameters()))
        return gathered

    def scatter(self, states: Iterator[tuple[str, Mapping[str, Tensor]]], updates: int) -> None:
        """Inverse of `gather` for all parameters: `states` yields every name with its whole tensors, any dtype.

        `updates` is the number of steps that the optimizer has applied, which corrects Adam's bias.
        """
        for name, tensors in states:
            for key, tensor in tensors.items():
                self.layout.scatter(name, tensor, self._parts(key))
        for state in self.optimizer.state.values():
            state["step"].fill_(updates)
        self._refresh_parameters()

    @property
    def updates(self) -> int:
        """Steps that the optimizer has applied."""
        return int(next(iter(self.optimizer.state.values()))["step"])

    @property
    def scaler(self) -> dict[str, float]:
        """State of the loss scale of fp16; empty in other precisions."""
        if self.precision != "fp16":
            return {}
        state = vars(self._engine.optimizer.loss_scaler)
        return {key: state[key] for key in SCALER if key in state}

    @scaler.setter
    def scaler(self, state: Mapping[str, float]) -> None:
        if self.precision == "fp16":
            vars(self._engine.optimizer.loss_scaler).update(state)

    def _parts(self, key: str) -> list[Tensor]:
        """The masters, what is averaged, or a moment of every master (where one has others, itself: nobody asks for it)."""
        if key == "weight":
            return self.layout.masters
        if key == "average":
            if not self._average:
                self._average = [master.detach().clone() for master in self.layout.masters]
            return self._average
        return [self.optimizer.state[master].get(key, master) for master in self.layout.masters]

    @torch.no_grad()
    def _refresh_parameters(self) -> None:
        """Recompute what the forward reads from the master weights."""
        wrapper = self._engine.optimizer
        if self.zero.stage in (1, 2):
            wrapper.update_lp_params()
        elif self.zero.stage == 3:
            # Small parameters stay gathered on every rank once they are used. They are not gathered here: a module that reads
            # another's must find them missing to have them fetched in the backward pass too.
            kept = wrapper.persistent_parameters
            if kept:
                kept[0].partition(kept)
            for index in range(len(wrapper.fp32_partitioned_groups_flat)):
                wrapper._reassign_or_swap_out_partitioned_parameters(index)
