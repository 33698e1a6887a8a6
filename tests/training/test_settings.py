"""Options of ZeRO and precision: what is handed to DeepSpeed, what is refused, and that they change no loss."""

import pytest
import torch

from latentpt.config import ConfigError, build
from latentpt.run.sections import OptimizerConfig, ZeroConfig
from latentpt.training.engine import Engine, start_processes
from latentpt.training.engine.settings import deepspeed_config
from latentpt.training.trainer import train
from tests.training.small import CARRIED, losses, tiny_run
from tests.training.test_engine import Tiny, state, train_step
from tests.training.test_trainer import plain_losses


def generated(precision="bf16", **zero):
    return deepspeed_config(build(ZeroConfig, zero), OptimizerConfig(), precision, 2, 3, 4)


def test_the_users_own_keys_go_in_beside_ours():
    own = {
        "zero_optimization": {"allgather_bucket_size": 1000},
        "fp16": {"loss_scale_window": 50},
        "comms_logger": {"enabled": True},
    }
    config = generated("fp16", stage=2, overlap_comm=True, deepspeed=own)
    assert config["zero_optimization"] == {
        "stage": 2, "reduce_bucket_size": 500_000_000, "overlap_comm": True, "allgather_bucket_size": 1000,
    }  # fmt: skip
    assert config["fp16"] == {"enabled": True, "loss_scale_window": 50} and config["comms_logger"] == {
        "enabled": True
    }


def test_offloading_goes_to_host_memory():
    division = generated(stage=3, offload_optimizer="/fast/disk", offload_parameters="cpu")[
        "zero_optimization"
    ]
    assert division["offload_optimizer"] == division["offload_param"] == {"device": "cpu"}
    assert "offload_optimizer" not in generated(stage=3)["zero_optimization"]


@pytest.mark.parametrize(
    "zero, message",
    [
        (
            {"deepspeed": {"gradient_clipping": 1}},
            "zero.deepspeed.gradient_clipping cannot be given: optimizer.clip decides it",
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3}}},
            "zero.deepspeed.zero_optimization.stage cannot be given: zero.stage",
        ),
        ({"deepspeed": {"bf16": {"enabled": True}}}, "training.precision decides it"),
        (
            {"deepspeed": {"optimizer": {"type": "Adam", "params": {"lr": 1}}}},
            "optimizer.type cannot be given: optimizer.kind",
        ),
        (
            {"deepspeed": {"comms_loger": {}}},
            "comms_loger is no key of DeepSpeed .* the nearest is comms_logger",
        ),
        ({"offload_optimizer": "nvme"}, "nvme is neither cpu nor a folder; as a folder write ./nvme"),
        ({"stage": 0, "offload_optimizer": "cpu"}, "zero.offload_optimizer = cpu needs zero.stage 1, 2 or 3"),
        ({"stage": 2, "offload_parameters": "cpu"}, "zero.offload_parameters = cpu needs zero.stage = 3"),
    ],
)
def test_what_contradicts_our_options_is_refused_and_the_option_named(zero, message):
    with pytest.raises(ConfigError, match=message):
        build(ZeroConfig, zero)


def test_selective_recomputation_of_parameters_that_are_fetched_in_a_block_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"selective does not work with zero.stage = 3; .* is block"):
        tiny_run(tmp_path, tmp_path, training={"checkpoint_activations": "selective"}, zero={"stage": 3})


def test_fp16_without_a_stage_that_scales_the_loss_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training.precision = fp16 needs zero.stage 1, 2 or 3"):
        tiny_run(tmp_path, tmp_path, training={"precision": "fp16"}, zero={"stage": 0})


@pytest.mark.parametrize("stage, where", [(1, "folder"), (2, "cpu"), (3, "cpu")])
def test_offloading_changes_no_loss_and_leaves_no_file(stage, where, text, tmp_path):
    # A method some of whose parameters every second step does not use.
    room = tmp_path / "moments"
    zero = {"stage": stage, "offload_optimizer": str(room) if where == "folder" else "cpu"}
    if stage == 3:
        zero["offload_parameters"] = "cpu"
    config = tiny_run(tmp_path / "run", text, zero=zero, **CARRIED)
    train(tiny_run(tmp_path / "run", text, zero=zero, training={"stop_at": 4}, **CARRIED))
    train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)
    assert room.exists() == (where == "folder") and not list(tmp_path.glob("moments/*"))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_loss_scale_of_fp16_follows_overflows_and_is_part_of_the_state(stage, monkeypatch):
    *_, device = start_processes()
    import deepspeed

    monkeypatch.setattr(type(deepspeed.get_accelerator()), "is_fp16_supported", lambda _: True)

    def engine():
        zero = ZeroConfig(stage=stage, deepspeed={"fp16": {"initial_scale_power": 8, "hysteresis": 1}})
        return Engine(
            Half(),
            lambda model, x, factor: model(x) * factor,
            OptimizerConfig(lr=1e-2),
            zero,
            "fp16",
            4,
            2,
            device,
        )

    source, target = engine(), engine()
    assert source.scaler["cur_scale"] == 256
    train_step(source, float("inf"), 1.0)
    assert not source.applied and source.scaler["cur_scale"] == 128
    train_step(source, 1.0, 1.0)
    assert source.applied and 0 < source.grad_norm < 10
    target.scatter(((name, source.gather(name)) for name in source.names), source.updates)
    target.scaler = source.scaler
    for each in (source, target):
        train_step(each, 2.0, 1.0)
    ours, theirs = state(source), state(target)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours) and source.scaler == target.scaler


class Half(Tiny):
    def forward(self, x):
        return self.body(x.half()).float().square().mean()


def test_an_old_boolean_still_says_what_is_recomputed(tmp_path):
    for given, meant in ((True, "block"), (False, "none"), ("pass", "pass")):
        config = tiny_run(tmp_path, tmp_path, training={"checkpoint_activations": given})
        assert config.training.checkpoint_activations == meant
    with pytest.raises(ConfigError, match="checkpoint_activations"):
        tiny_run(tmp_path, tmp_path, training={"checkpoint_activations": "blocks"})
