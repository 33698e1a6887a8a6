"""Everything DeepSpeed: processes, the configuration generated from ours, the step, the training state as whole tensors.

This is the only module that imports deepspeed, and the home of the workarounds for it:

* a process without a launcher makes a group of its own (DeepSpeed would look for MPI);
* on a CPU, the shared-memory extension that takes minutes to compile is not built;
* precision: bf16 with ZeRO 1 to 3 keeps bf16 parameters beside fp32 master weights and accumulates gradients in fp32.
  Stage 0 can only accumulate bf16 gradients in bf16, so there the parameters stay fp32 and the forward runs under
  autocast;
* stage 0 in fp32 would apply a non-finite gradient, which the other stages skip: we clip and skip ourselves there;
* parameters that a step does not use (a fusion of states in a step of one pass) have a gradient of zero, in every stage;
* the training state is read and written as whole tensors, parameter by parameter (`Engine.gather`,
  `Engine.scatter`), because DeepSpeed's own checkpoints are bound to the number of ranks, and its universal ones
  resume ZeRO-3 wrongly when there are several parameter groups.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentpt.run.checkpoints import shapes_of
from latentpt.run.sections import OptimizerConfig, ZeroConfig

T = TypeVar("T")
SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's running means of the gradient and of its square


def start_processes(deterministic: bool = False) -> tuple[int, int, torch.device]:
    """Join the process group (of one process when no launcher started us); returns (rank, world size, device).

    `deterministic` makes torch refuse kernels whose result depends on timing.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if "SLURM_STEP_ID" in os.environ:  # srun starts ranks itself and describes them in its own variables
        for name, slurm in SLURM_NAMES.items():
            os.environ.setdefault(name, os.environ[slurm])
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed

    # DeepSpeed calls collectives by names that newer torch versions rename, with a warning at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        _skip_shared_memory_extension()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "RANK" not in os.environ:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(backend, timeout=timedelta(minutes=30), verbose=False)
    return dist.get_rank(), dist.get_world_size(), device


def _skip_shared_memory_extension() -> None:
    """A private table of DeepSpeed; if it moves, the extension is compiled as DeepSpeed intends, only slower."""
    with contextlib.suppress(ImportError, AttributeError):
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices (linear weights, embeddings, head) decay, vectors (biases, norm weights) and gates do not.

    Weight decay keeps matrices from growing; a norm's weight or a bias has no scale to trade against another layer's.
    Modules whose attribute `decays` is False are left out as well.
    """
    spared = {p for m in model.modules() if not getattr(m, "decays", True) for p in m.parameters()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [p.ndim >= 2 and p not in spared for p in parameters]
    groups = [
        {"params": [p for p, d in zip(parameters, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(parameters, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def deepspeed_config(
    zero: ZeroConfig,
    optimizer: OptimizerConfig,
    precision: str,
    micro_batch: int,
    accumulation: int,
    world: int,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: batch sizes, ZeRO and precision have no second source."""
    config: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_print": None,
        "gradient_clipping": optimizer.clip if zero.stage > 0 else 0.0,  # stage 0: Engine.step clips
        "zero_optimization": {"stage": zero.stage},
    }
    if zero.stage > 0:
        config["zero_optimization"] |= {"reduce_bucket_size": zero.bucket}
        if precision == "bf16":
            config["bf16"] = {"enabled": True, "check_grad_overflow": True}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


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
    """A model trained by AdamW under DeepSpeed.

    Its methods are collective: every rank calls them in the same order. `loss(model, *inputs)` is the scalar whose
    mean over micro-batches and ranks is minimised.

    Attributes:
        model: the model, as it was given; its parameter names are the names of the training state.
        names, shapes: trainable parameters by name, and their whole shapes.
        applied: whether the last step changed the parameters.
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
    ) -> None:
        import deepspeed

        self.model, self.device, self.zero, self.precision = model.to(device), device, zero, precision
        self.accumulation, self._loss, self.clip = accumulation, loss, optimizer.clip
        self.names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = shapes_of(self.names)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=device.type == "cuda",
        )
        world = dist.get_world_size()
        with contextlib.redirect_stdout(io.StringIO()):  # memory reports that cannot be turned off
            self._engine, *_ = deepspeed.initialize(
                model=_Root(model, self._arithmetic),
                optimizer=self.optimizer,
                config=deepspeed_config(zero, optimizer, precision, micro_batch, accumulation, world),
                dist_init_required=False,
            )
        self._create_moments()
        self._grad_norm: Tensor | float = 0.0
        self.applied = True

    @property
    def description(self) -> str:
        """What runs the optimizer, for the opening lines of a run."""
        wrapper = type(self._engine.optimizer).__name__
        return f"ZeRO {self.zero.stage}, {self.precision}, {wrapper} over {type(self.optimizer).__name__}"

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
            result: T = self._engine(function, *inputs)
        self._engine.train()
        return result

    def accumulate(self, *inputs: Any) -> Tensor:
        """Forward and backward of one micro-batch; returns its loss (a detached scalar on the device).

        The gradients of `accumulation` such calls are averaged, over micro-batches and ranks.
        """
        loss = self._engine(self._loss, *inputs)
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch
        return loss.detach()

    def step(self, lr: float) -> None:
        """Update the parameters at learning rate `lr` after the last micro-batch, or skip a non-finite gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.zero.stage == 0:
            self._step_unpartitioned()
            return
        self._engine.step()
        if self.zero.stage == 3:
            # Its buffer outlives the step, and would update a parameter that the next step does not use.
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

    # ------------------------------------------------------------------------------------------ state

    def gather(self, name: str) -> dict[str, Tensor]:
        """The whole fp32 master weight of a parameter and its Adam moments: {"weight", "exp_avg", "exp_avg_sq"}.

        Every rank gets the tensors, on the device.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.names[name]
        if self.zero.stage == 0:
            state = self.optimizer.state[parameter]
            return {"weight": parameter.detach(), **{key: state[key] for key in MOMENTS}}
        tensors = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        tensors["weight"] = safe_get_full_fp32_param(parameter)
        return {key: tensor.reshape(self.shapes[name]) for key, tensor in tensors.items()}

    def whole_parameters(self) -> AbstractContextManager[Any]:
        """Inside, every rank holds the model's parameters whole, frozen ones too, as they are computed with; collective."""
        if self.zero.stage < 3:
            return contextlib.nullcontext()
        from deepspeed import zero

        gathered: AbstractContextManager[Any] = zero.GatheredParameters(list(self.model.parameters()))
        return gathered

    def scatter(self, states: Iterator[tuple[str, Mapping[str, Tensor]]], updates: int) -> None:
        """Inverse of `gather` for all parameters: `states` yields every name with its whole tensors, any dtype.

        `updates` is the number of steps that Adam has applied, which corrects its bias.
        """
        for name, tensors in states:
            for key, tensor in tensors.items():
                self._write(self.names[name], tensor.to(self.device, torch.float32), key)
        for state in self.optimizer.state.values():
            state["step"].fill_(updates)
        self._refresh_parameters()

    @property
    def updates(self) -> int:
        """Steps that Adam has applied."""
        return int(next(iter(self.optimizer.state.values()))["step"])

    def _masters(self) -> list[Tensor]:
        """The fp32 tensors that AdamW updates: parameters at stage 0, otherwise this rank's flat partitions."""
        wrapper = self._engine.optimizer
        if self.zero.stage == 0:
            return list(self.names.values())
        for attribute in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):  # fmt: skip
            if hasattr(wrapper, attribute):
                return list(getattr(wrapper, attribute))
        raise AssertionError(f"{type(wrapper).__name__} keeps its master weights in an unknown place")

    def _create_moments(self) -> None:
        """Give AdamW the state it would create at its first step: then it can be read and written at any time.

        (DeepSpeed links the states to the parameters after the first group's first step, when the second group has
        none yet, and could never read the second group's.)
        """
        for master in self._masters():
            self.optimizer.state[master] = {
                "step": torch.zeros((), device=self.device if self.device.type == "cuda" else "cpu"),
                **{key: torch.zeros_like(master, requires_grad=False) for key in MOMENTS},
            }
        if self.zero.stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _write(self, parameter: nn.Parameter, whole: Tensor, key: str) -> None:
        from deepspeed import utils

        if self.zero.stage == 0:
            target = parameter.data if key == "weight" else self.optimizer.state[parameter][key]
            target.copy_(whole)
        elif self.zero.stage == 3:
            # The last rank's partition is padded, which DeepSpeed's safe_set_full_* do not provide for.
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = nn.functional.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
            mine = padded[size * dist.get_rank() :][:size]
            if key == "weight":
                utils.safe_set_local_fp32_param(parameter, mine)
            else:
                utils.safe_set_local_optimizer_state(parameter, mine, key)
        elif key == "weight":
            utils.safe_set_full_fp32_param(parameter, whole)
        else:
            utils.safe_set_full_optimizer_state(parameter, whole, key)

    @torch.no_grad()
    def _refresh_parameters(self) -> None:
        """Recompute what the forward reads from the master weights."""
        wrapper = self._engine.optimizer
        if self.zero.stage in (1, 2):
            wrapper.update_lp_params()
        elif self.zero.stage == 3:
            kept = wrapper.persistent_parameters  # small parameters, which stay gathered on every rank
            if kept:
                kept[0].partition(kept)
            for index in range(len(wrapper.fp32_partitioned_groups_flat)):
                wrapper._reassign_or_swap_out_partitioned_parameters(index)
            if kept:
                kept[0].all_gather(kept)
