"""The dictionary for DeepSpeed, generated from our configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentpt.run.sections import OptimizerConfig, ZeroConfig


def deepspeed_config(
    zero: ZeroConfig,
    optimizer: OptimizerConfig,
    precision: str,
    micro_batch: int,
    accumulation: int,
    world: int,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: batch sizes, ZeRO and precision have no second source.

    The user's own keys, `zero.deepspeed`, go in beside ours; that they decide nothing of ours was seen to when the
    configuration was read.
    """
    division: dict[str, Any] = {"stage": zero.stage}
    config: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_print": None,
        "gradient_clipping": optimizer.clip if zero.stage > 0 else 0.0,  # stage 0: Engine.step clips
        "zero_optimization": division,
        # The optimizer is ours, and the tests of this room try it at every stage and on the host.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if zero.stage > 0:
        division["reduce_bucket_size"] = zero.bucket
        if zero.overlap_comm is not None:
            division["overlap_comm"] = zero.overlap_comm
        if zero.offload_optimizer is not None:
            division["offload_optimizer"] = {"device": "cpu"}
        if zero.offload_parameters is not None:
            division["offload_param"] = {"device": "cpu"}
        if precision != "fp32":
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        if precision == "bf16":
            config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if precision == "fp16":
            config["fp16"] = {"enabled": True}
    return beside(config, zero.deepspeed)


def beside(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both dictionaries in one, section by section."""
    merged = dict(ours)
    for key, value in theirs.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = beside(merged[key], value) if both else value
    return merged
