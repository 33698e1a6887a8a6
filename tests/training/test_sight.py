"""What a training shows of itself: time by phases, memory, sizes of thoughts, traces, services, its last line."""

import gc
import gzip
import json
import sys
import time
import types

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.run import read_metrics
from latentpt.run.command import Start
from latentpt.training.garbage import collected_by_hand
from latentpt.training.phases import Phases
from latentpt.training.sinks import TensorBoard, flat
from latentpt.training.trainer import train
from tests.training.small import losses, tiny_run


def test_phases_add_up_and_a_pause_is_nobodys():
    phases = Phases(torch.device("cpu"))
    for _ in range(2):
        phases.start()
        time.sleep(0.02)
        phases.spent("a")
        time.sleep(0.01)
        phases.spent("b")
        time.sleep(0.05)
    found = phases.read()
    assert found["a"] >= 0.04 and 0.02 <= found["b"] < 0.05 and set(found) == {"a", "b"}
    assert phases.read() == {}


def test_nothing_is_collected_while_a_training_runs_but_by_hand():
    enabled = gc.isenabled()
    with collected_by_hand():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        gc.collect()
    assert gc.isenabled() == enabled and gc.get_freeze_count() == 0


def test_a_training_tells_times_memory_and_sizes_traces_steps_and_ends_with_one_line(text, tmp_path, capsys):
    monitor = {"profile": [2, 3], "layers_every": 2}
    config = tiny_run(tmp_path / "run", text, training={"steps": 4}, monitor=monitor)
    train(config)
    lines = [line for line in read_metrics(config.folder.metrics) if line["kind"] == "train"]
    for line in lines:
        shares = {name: share for name, share in line.items() if name.startswith("time/")}
        passes = [name for name in shares if name.startswith("time/pass/")]
        assert len(passes) == 2 + (line["refinements"] or 0)  # tokens alone, then all slots once and refined
        rest = ("data", "forward", "backward", "reduction", "optimizer")
        assert set(shares) == {*passes, *(f"time/{name}" for name in rest)}
        assert all(share >= 0 for share in shares.values()) and 0.3 < sum(shares.values()) <= 1.0
        assert line["device_gib"] is None and 0.05 < line["host_gib"] < 100
        assert line["thought/1"] > 0 and "thought/2" not in line
    assert [line["step"] for line in read_metrics(config.folder.metrics) if line["kind"] == "layers"] == [
        2,
        4,
    ]
    trace = config.folder.profile / "steps-2-to-3-rank-00000.json.gz"
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    assert "aten::" in trace.with_name(trace.name.replace("json.gz", "txt")).read_text()
    told = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(told.removeprefix("result "))
    assert (result["state"], result["exit_code"], result["step"], result["steps"]) == ("finished", 0, 4, 4)
    assert result["train_loss"] == losses(config)[4] and result["run"] == str(config.folder.path)
    assert json.loads(config.folder.state.read_text()).items() >= result.items()


def test_the_end_of_the_time_stops_like_a_signal(text, tmp_path, capsys):
    config = tiny_run(tmp_path / "run", text)
    progress = train(config, Start(deadline=time.monotonic()))
    assert progress.step == 1
    out = capsys.readouterr().out
    assert "stopped at step 1 of 8 (end of --minutes)" in out
    result = json.loads(out.splitlines()[-1].removeprefix("result "))
    assert (result["state"], result["reason"], result["exit_code"]) == ("stopped", "end of --minutes", 0)
    assert train(config, Start("resume", deadline=time.monotonic() + 600)).step == 8


def test_options_are_flat_where_they_are_shown():
    config = {"seed": 0, "optimizer": {"lr": 0.5, "betas": [0.9, 0.95]}, "zero": {"stage": None}}
    assert flat(config) == {
        "seed": 0,
        "optimizer.lr": 0.5,
        "optimizer.betas": "[0.9, 0.95]",
        "zero.stage": "None",
    }


def test_tensorboard_has_hyperparameters_and_texts_and_forgets_what_was_rewound(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(tmp_path, 0, {"optimizer": {"lr": 0.5}})
    for step in (1, 2, 3):
        sink.record({"kind": "train", "step": step, "loss": float(step)})
    sink.record({"kind": "text", "step": 3, "number": 1, "prompt": "Once", "text": " upon"})
    sink.rewind(1)
    sink.record({"kind": "train", "step": 2, "loss": 20.0})
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "text/1/text_summary" in events.summary_metadata


class Service(types.ModuleType):
    """A package that notes how it is called."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        for call in ("init", "log", "finish", *(["define_metric"] if name == "wandb" else [])):
            setattr(self, call, lambda *a, _call=call, **k: self.calls.append((_call, a, k)))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_the_options_and_every_measurement_and_a_resume_goes_on_in_its_run(
    name, text, tmp_path, monkeypatch
):
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    for stop in (1, 2):
        train(tiny_run(tmp_path / "run", text, training={"stop_at": stop}, monitor={name: "thinking"}))
    inits = [keywords for call, _, keywords in service.calls if call == "init"]
    assert inits[0]["project"] == "thinking" and inits[0]["resume"] == "allow"
    assert inits[0]["config"]["optimizer.lr"] == 1e-2
    key = "id" if name == "wandb" else "name"
    assert inits[0][key] == inits[1][key] and inits[1]["name"].startswith("run")
    logged = [arguments[0] for call, arguments, _ in service.calls if call == "log"]
    found = losses(tiny_run(tmp_path / "run", text))
    assert [(one["step"], one["train/loss"]) for one in logged if "train/loss" in one] == [*found.items()]
    assert [call for call, *_ in service.calls].count("finish") == 2


def test_a_service_that_fails_is_told_once_and_one_that_is_missing_is_refused(
    text, tmp_path, monkeypatch, capsys
):
    service = Service("wandb")

    def refuse(*_, **__):
        raise RuntimeError("no route to the server")

    service.log = refuse
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setitem(sys.modules, "trackio", None)
    train(tiny_run(tmp_path / "run", text, training={"steps": 2}, monitor={"wandb": "thinking"}))
    assert capsys.readouterr().err.count("wandb cannot be written (no route to the server)") == 1
    with pytest.raises(ConfigError, match=r"monitor\.trackio needs the package trackio"):
        train(tiny_run(tmp_path / "other", text, monitor={"trackio": "thinking"}))
    assert not (tmp_path / "other").exists()
