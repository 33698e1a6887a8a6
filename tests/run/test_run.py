"""Run configurations that are shipped, and the run folder."""

import json
from pathlib import Path

import pytest
import yaml

from latentpt.config import ConfigError, load_config
from latentpt.modeling.presets import PRESETS
from latentpt.run import (
    RunConfig,
    RunFolder,
    cut_metrics,
    load_model,
    read_metrics,
    versions,
)
from latentpt.training.start import load_run_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_shipped_run_can_be_trained_on_one_rank_and_every_preset_on_eight(path):
    config = load_run_config(path)
    assert Path(config.output).name
    for world in (1, 8) if config.model.preset else (1,):
        assert config.training.accumulation(config.data.sequence_length, world) >= 1


def test_a_run_is_named_after_its_file_unless_the_file_says_otherwise():
    assert load_run_config(CONFIGS / "pythia-70m.yaml").output == "runs/pythia-70m"
    assert load_run_config(CONFIGS / "pythia-70m.yaml", ["output=elsewhere"]).output == "elsewhere"


def test_every_preset_has_a_run_of_its_name():
    assert {path.stem for path in RUNS} >= set(PRESETS)


@pytest.mark.parametrize("path", [path for path in RUNS if "-latent" in path.stem or "-stage" in path.stem], ids=lambda path: path.stem)  # fmt: skip
def test_latent_runs_differ_from_their_baseline_in_the_thoughts_alone(path):
    latent, vanilla = load_config(RunConfig, path), load_config(RunConfig, path.with_name(yaml.safe_load(path.read_text())["extends"]))  # fmt: skip
    assert latent.thoughts.method == "latent" and vanilla.thoughts.method == "vanilla"
    same = {"micro_batch": 1, "checkpoint_activations": False}  # how the work is cut changes no result
    ours = latent.model_copy(
        update={"thoughts": vanilla.thoughts, "training": latent.training.model_copy(update=same)}
    )
    assert ours == vanilla.model_copy(update={"training": vanilla.training.model_copy(update=same)})


def test_metrics_end_at_the_last_whole_line_and_are_cut_at_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [{"kind": kind, "step": step} for step in (1, 2, 3) for kind in ("train", "validation")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    assert read_metrics(path) == lines
    cut_metrics(path, 2)
    assert read_metrics(path) == lines[:4]


def test_a_run_is_described_by_its_configuration_and_versions(tmp_path):
    config = load_run_config(CONFIGS / "pythia-70m-latent1.yaml", [f"output={tmp_path}/run"])
    folder = RunFolder(tmp_path / "run")
    folder.describe_run(config, "cpu")
    assert load_config(RunConfig, folder.config) == config
    written = json.loads(folder.versions.read_text())
    assert written["packages"]["torch"] == versions()["packages"]["torch"]
    assert written["device"] == "cpu" and "git" in written


def test_load_model_refuses_a_folder_that_holds_no_run_or_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no config.yaml"):
        load_model(tmp_path)
    config = load_run_config(CONFIGS / "pythia-14m.yaml", [f"output={tmp_path}"])
    RunFolder(tmp_path).describe_run(config, "cpu")
    with pytest.raises(ConfigError, match="holds no finished checkpoint"):
        load_model(tmp_path)


def test_a_damaged_line_of_metrics_is_named_and_left_out(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "step": 1}\n{"kind": "tr\n\xff\xfe\n3\n{"step": 4}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 4]
    told = capsys.readouterr().err
    assert [f"line {number} of {path} is damaged and left out" in told for number in (1, 2, 3, 4, 5)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    cut_metrics(path, 2)
    assert path.read_text() == '{"kind": "train", "step": 1}\n'


def test_a_configuration_that_changes_is_kept_beside_the_new_one(tmp_path):
    folder = RunFolder(tmp_path)
    first, second = (load_run_config(CONFIGS / "demo.yaml", [f"optimizer.lr={lr}"]) for lr in (1e-3, 1e-4))
    folder.describe_run(first, "cpu")
    folder.describe_run(first, "cpu", step=5)
    assert not folder.earlier_config(5).exists()
    folder.describe_run(second, "cpu", step=7)
    assert load_run_config(folder.earlier_config(7)).optimizer.lr == 1e-3
    assert load_run_config(folder.config).optimizer.lr == 1e-4
