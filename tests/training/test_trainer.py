"""One process: the trainer against a plain loop, interrupted and resumed, under every ZeRO stage."""

import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from latentpt.config import ConfigError
from latentpt.data.batches import BatchStream, TokenDataset
from latentpt.data.errors import DataError
from latentpt.data.identity import data_identity
from latentpt.run import checkpoints, load_model, read_metrics
from latentpt.run.command import AUTO, Start
from latentpt.training import trainer
from latentpt.training.engine.optimizers import parameter_groups
from latentpt.training.learning_rate import learning_rate
from latentpt.training.origin import find_origin
from latentpt.training.trainer import Trainer, build_model, train
from tests.training.small import losses, tiny_run


def plain_losses(config):
    """The training as one would write it by hand: torch, one process, no DeepSpeed."""
    model, settings = build_model(config), config.training
    groups = parameter_groups(model, config.optimizer)
    adam = torch.optim.AdamW(groups, lr=1.0, betas=config.optimizer.betas, eps=config.optimizer.eps)
    data = TokenDataset(config.data.train, config.data.sequence_length)
    found = {}
    with BatchStream(data, config.seed, settings.batch_samples, settings.batch_samples) as stream:
        for step in range(config.steps):
            tokens = next(stream)
            schedule = model.training_schedule(config.seed, step)
            targets = trainer.targets_of(tokens)
            loss = model(tokens[:, :-1], targets=targets, schedule=schedule, return_logits=False).loss
            loss.backward()
            for parameter in model.parameters():
                if parameter.grad is None:  # not used in this step
                    parameter.grad = torch.zeros_like(parameter)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            for group in adam.param_groups:
                group["lr"] = learning_rate(config.learning_rate, config.optimizer.lr, step, config.steps)
            adam.step()
            adam.zero_grad()
            found[step + 1] = loss.item()
    return found


def final_state(config):
    """Every tensor of the last checkpoint by name."""
    path = checkpoints.find(config.folder.checkpoints)
    return {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize(
    "stage, precision",
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")],
)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_by_bit(stage, precision, text, tmp_path):
    def run(name, **training):
        return tiny_run(
            tmp_path / name, text, zero={"stage": stage}, training={"precision": precision, **training}
        )

    whole = run("whole")
    train(whole)
    train(run("parts", stop_at=3))
    progress = train(run("parts"))
    for kind in ("train", "validation"):
        assert losses(run("parts"), kind) == losses(whole, kind)
    ours, theirs = final_state(run("parts")), final_state(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (progress.step, progress.samples, progress.tokens) == (8, 64, 64 * 12)
    assert losses(whole) == pytest.approx(plain_losses(whole), abs=2e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("stage", [2, 3])
def test_recomputing_activations_changes_nothing(stage, text, tmp_path):
    # These are the stages at which reentrant checkpointing of a block that runs several times fails.
    config = tiny_run(tmp_path, text, zero={"stage": stage}, training={"checkpoint_activations": True})
    train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)


@pytest.mark.parametrize("method", ["ponder", "latent_mixture", "sequential_hidden_decoding"])
def test_methods_that_use_parameters_out_of_turn_train_under_zero_3(method, text, tmp_path):
    # Mixtures read head and embedding outside their modules' forward; stage 3 has to gather them there.
    thoughts = {"method": method, "num_thoughts": 1, "refinements": 1}
    config = tiny_run(tmp_path, text, zero={"stage": 3}, thoughts=thoughts, training={"steps": 4})
    train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)


@pytest.mark.parametrize("before, after", [(0, 3), (3, 1), (2, 0)])
def test_a_checkpoint_of_one_zero_stage_continues_under_another(before, after, text, tmp_path):
    train(tiny_run(tmp_path / "run", text, zero={"stage": before}, training={"stop_at": 4}))
    config = tiny_run(tmp_path / "run", text, zero={"stage": after})
    train(config)
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)


def test_a_signal_saves_the_step_and_the_next_start_goes_on(text, tmp_path, monkeypatch, capsys):
    config = tiny_run(tmp_path / "run", text)
    log = Trainer.log

    def interrupt(self, *arguments, **values):
        log(self, *arguments, **values)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "log", interrupt)
        assert train(config).step == 3
    assert "stopped at step 3 of 8 (SIGUSR1)" in capsys.readouterr().out
    assert not config.folder.summary.exists()
    assert train(config, Start("resume")).step == 8
    assert config.folder.summary.exists()
    assert losses(config) == pytest.approx(plain_losses(config), abs=2e-6)


def test_steps_with_a_non_finite_gradient_are_skipped_counted_and_end_the_training(
    text, tmp_path, monkeypatch
):
    config = tiny_run(tmp_path / "run", text, training={"max_skipped": 3})
    finite = trainer.training_loss
    calls = []

    def loss(model, tokens, schedule, *more):
        calls.append(None)
        step = (len(calls) - 1) // 4 + 1  # four micro-batches a step
        return finite(model, tokens, schedule, *more) * (float("nan") if step in (2, 5, 6, 7) else 1.0)

    monkeypatch.setattr(trainer, "training_loss", loss)
    with pytest.raises(ConfigError, match="last finite step was 4"):
        train(config)
    lines = {line["step"]: line for line in read_metrics(config.folder.metrics) if line["kind"] == "train"}
    assert [lines[step]["skipped"] for step in range(1, 7)] == [0, 1, 1, 1, 2, 3]
    assert lines[2]["loss"] is None and lines[3]["loss"] < 6


def test_a_checkpoint_of_another_training_is_refused(text, tmp_path):
    train(tiny_run(tmp_path / "run", text, training={"steps": 1}))
    before = sorted(tmp_path.rglob("*"))
    for section, message in (
        ({"model": {"hidden_size": 24}}, "model.hidden_size is 18 there and 24 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tiny_run(tmp_path / "run", text, **section))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "section, message",
    [
        ({"data": {"train": "missing/shard"}}, "missing/shard"),
        ({"data": {"mask_documents": True}}, "mask_documents needs shards whose manifest names"),
        ({"training": {"micro_batch": 3}}, "nearest values that work are training.micro_batch = 2"),
        ({"training": {"attention": "spda"}}, "training.attention = spda is unknown; the nearest is sdpa"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(section, message, text, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        train(tiny_run(tmp_path / "run", text, **section))
    assert not (tmp_path / "run").exists()


def test_resume_wants_a_checkpoint_and_fresh_sets_the_old_training_aside(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, training={"steps": 1})
    with pytest.raises(ConfigError, match="no checkpoint to resume"):
        train(config, Start("resume"))
    assert not config.folder.path.exists()
    train(config)
    assert find_origin(config, AUTO, trainer.FIXED, data_identity(config.data)) is not None
    old = config.folder.metrics.read_text()
    train(config, Start("fresh"))
    assert (tmp_path / "run.old-1" / "metrics.jsonl").read_text() == old
    assert list(losses(config)) == [1]


def test_load_model_returns_the_trained_weights(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, model={"tie_embeddings": True}, checkpoint={"every": 4})
    train(config)
    model, loaded = load_model(tmp_path / "run")
    assert loaded == config
    state = final_state(config)
    assert all(torch.equal(state[name], p) for name, p in model.named_parameters())
    earlier, _ = load_model(tmp_path / "run", step=4)
    assert not torch.equal(earlier.decoder.embedding.weight, model.decoder.embedding.weight)
    with pytest.raises(ConfigError, match="no checkpoint of step 5; the nearest is step 4"):
        load_model(tmp_path / "run", step=5)


def test_a_latent_training_can_start_from_the_weights_of_a_vanilla_one(text, tmp_path):
    train(tiny_run(tmp_path / "vanilla", text, thoughts={"method": "vanilla", "num_thoughts": 0}))
    start = {"start_from": str(tmp_path / "vanilla"), "stop_at": 1}
    latent = tiny_run(tmp_path / "latent", text, training=start)
    train(latent)
    assert losses(latent)[1] < losses(tiny_run(tmp_path / "vanilla", text))[1]
    with pytest.raises(ConfigError, match="of another model"):
        train(tiny_run(tmp_path / "wider", text, model={"hidden_size": 24}, training=start))
    assert not (tmp_path / "wider").exists()


def test_a_training_starts_from_the_decoder_of_one_that_thinks_otherwise(text, tmp_path):
    pause = tiny_run(tmp_path / "pause", text, thoughts={"method": "pause", "num_thoughts": 1})
    train(tiny_run(tmp_path / "pause", text, thoughts=pause.thoughts.model_dump(), training={"stop_at": 1}))
    source, _ = load_model(tmp_path / "pause")
    for name in ("vanilla", "latent"):
        thoughts = {"method": name, "num_thoughts": int(name != "vanilla")}
        start = {"start_from": str(tmp_path / "pause"), "stop_at": 1}
        later = tiny_run(tmp_path / name, text, thoughts=thoughts, training=start, optimizer={"lr": 1e-12})
        train(later)
        found, _ = load_model(tmp_path / name)
        torch.testing.assert_close(
            found.decoder.state_dict(), source.decoder.state_dict(), atol=1e-10, rtol=0
        )


def test_a_mixture_is_read_and_every_held_out_source_has_its_loss(text, tmp_path):
    pairs = {name: str(text / name) for name in ("train", "validation")}
    sources = [{"path": path, "weight": 1 + 2 * (name == "train")} for name, path in pairs.items()]
    data = {"train": sources, "validation": {"one": pairs["train"], "other": pairs["validation"]}}
    config = tiny_run(tmp_path / "run", text, data=data, training={"steps": 2})
    train(config)
    line = read_metrics(config.folder.metrics)[-1]
    assert line["loss"] == pytest.approx((line["loss/one"] + line["loss/other"]) / 2, abs=1e-6)
    assert line["loss/one"] != line["loss/other"]


def test_a_resume_on_other_data_is_refused_by_the_name_of_the_source(text, tmp_path):
    train(tiny_run(tmp_path / "run", text, training={"stop_at": 1}))
    before = (tmp_path / "run" / "config.yaml").read_text()
    for source, name in (("validation", "other"), ("train", "moved")):
        for end in (".bin", ".idx"):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(text / (source + end), tmp_path / name / ("train" + end))
    with pytest.raises(DataError, match="the source 'train' is not the one the run was begun with"):
        train(tiny_run(tmp_path / "run", text, data={"train": str(tmp_path / "other" / "train")}))
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    train(tiny_run(tmp_path / "run", text, data={"train": str(tmp_path / "moved" / "train")}))


def test_a_resume_says_what_has_changed(text, tmp_path, capsys):
    train(tiny_run(tmp_path / "run", text, training={"stop_at": 1}))
    train(tiny_run(tmp_path / "run", text, training={"stop_at": 2}, optimizer={"lr": 2e-2}))
    assert "note: optimizer.lr was 0.01 and is 0.02 from here on" in capsys.readouterr().out
