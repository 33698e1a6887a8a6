"""DeepSpeed behind the engine: what is generated for it, and what it must not do."""

import pytest
import torch
from torch import nn

from latentpt.run.sections import OptimizerConfig, ZeroConfig
from latentpt.training.engine import Engine, start_processes
from latentpt.training.engine.optimizers import parameter_groups
from latentpt.training.engine.settings import deepspeed_config


class Tiny(nn.Module):
    """Sizes that no number of ranks divides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))

    def forward(self, x):
        return self.body(x).float().square().mean()


def make_engine(stage, precision="fp32"):
    *_, device = start_processes()
    return Engine(
        Tiny(),
        lambda model, x, factor: model(x) * factor,
        OptimizerConfig(lr=1e-2),
        ZeroConfig(stage=stage),
        precision,
        micro_batch=4,
        accumulation=2,
        device=device,
    )


def train_step(engine, *factors):
    for index, factor in enumerate(factors):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(index), dtype=torch.float32)
        engine.accumulate(x.bfloat16() if engine.precision == "bf16" and engine.zero.stage else x, factor)
    engine.step(1e-2)


def state(engine):
    return {(name, key): t.clone() for name in engine.names for key, t in engine.gather(name).items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_matrices_decay_and_vectors_do_not():
    model = Tiny()
    decayed, rest = parameter_groups(model, OptimizerConfig())
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert {p.shape for p in decayed["params"]} == {(7, 5), (3, 7)}
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_gradients_are_summed_in_fp32_and_checked(stage):
    config = deepspeed_config(ZeroConfig(stage=stage), OptimizerConfig(), "bf16", 2, 3, 4)
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config["train_batch_size"] == 24


@pytest.mark.parametrize(
    "stage, precision, wrapper",
    [
        (0, "fp32", ""),
        (0, "bf16", ""),
        (1, "fp32", "DeepSpeedZeroOptimizer"),
        (1, "bf16", "BF16_Optimizer"),
        (2, "bf16", "DeepSpeedZeroOptimizer"),
        (3, "fp32", "DeepSpeedZeroOptimizer_Stage3"),
    ],
)
def test_a_step_with_a_non_finite_gradient_changes_nothing_and_the_next_one_trains(stage, precision, wrapper):
    engine = make_engine(stage, precision)
    assert engine.description.endswith(f"{precision}, {wrapper} over AdamW" if wrapper else "AdamW")
    train_step(engine, 1.0, 1.0)
    before = state(engine)
    train_step(engine, float("nan"), 1.0)
    assert not engine.applied and engine.grad_norm == float("inf") and engine.updates == 1
    assert equal(state(engine), before)
    train_step(engine, 1.0, 1.0)
    assert engine.applied and 0 < engine.grad_norm < 10 and engine.updates == 2
    assert not equal(state(engine), before)


def test_nobody_is_warned_of_an_optimizer_that_others_have_not_tried(caplog):
    from deepspeed.utils import logger

    logger.addHandler(caplog.handler)
    make_engine(1)
    logger.warning("of another thing")
    logger.removeHandler(caplog.handler)
    assert caplog.messages[-1] == "of another thing"
    assert not [message for message in caplog.messages if "untested" in message]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_state_is_read_and_written_as_whole_tensors(stage):
    source, target = make_engine(stage), make_engine(stage)
    train_step(source, 1.0, 2.0)
    saved = state(source)
    target.scatter(((name, source.gather(name)) for name in source.names), source.updates)
    assert equal(state(target), saved)
    for engine in (source, target):
        train_step(engine, 2.0, 1.0)
    assert equal(state(target), state(source)) and not equal(state(source), saved)
    assert {name: t.shape for (name, key), t in saved.items() if key == "exp_avg"} == {
        name: p.shape for name, p in Tiny().named_parameters()
    }


def test_the_shared_memory_extension_is_not_compiled():
    """It takes minutes, and a build that is killed makes all later runs hang. The table is private to DeepSpeed."""
    if torch.cuda.is_available():
        pytest.skip("only built for CPUs")
    start_processes()
    import deepspeed.comm.comm
    import deepspeed.ops

    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    assert deepspeed.comm.comm.cdb.shm_comm_op is None
