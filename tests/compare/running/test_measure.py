"""What is measured of a trained arm is measured again when the arm, the data or the question is another one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from latentpt.compare.planning.plan import make_plan
from latentpt.compare.running import measure
from latentpt.data.indexed import ShardWriter
from tests.conftest import tiny_model
from tests.folders import write_run


def write_data(folder, shift):
    """Held-out tokens as a pair without a manifest."""
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder / "shard", np.uint16) as shard:
        for length in (60 + shift, 60):
            shard.add_document((np.arange(length) % 37).astype(np.uint16))
    return folder / "shard"


@pytest.fixture
def trained(comparison, tmp_path):
    """A function that writes the run of a comparison's only arm with weights of a seed, and returns its plan."""

    def write(weights=0, shift=0, **changes):
        plan = make_plan(comparison(arms={"vanilla": {}}, **changes))
        shutil.rmtree(plan.run_folder("vanilla", 0), ignore_errors=True)
        model = tiny_model("llama", torch.float32, seed=weights)
        write_run(plan.run_folder("vanilla", 0), model, write_data(tmp_path / "held-out", shift))
        return plan

    return write


def test_a_run_is_measured_once(trained):
    plan = trained()
    first = measure.measure(plan, "vanilla", 0)
    assert first.samples == 7 and first.loss == pytest.approx(first.exact_loss, abs=1e-4)
    path = measure.measurement_path(plan, "vanilla", 0)
    before = path.stat().st_mtime_ns
    assert measure.measure(trained(), "vanilla", 0) == first
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"weights": 1}, {"shift": 7}, {"evaluation_samples": 3}])
def test_another_checkpoint_other_data_or_another_question_is_measured_anew(change, trained):
    first = measure.measure(trained(), "vanilla", 0)
    second = measure.measure(trained(**change), "vanilla", 0)
    assert second.loss != first.loss and second.of != first.of


def test_several_held_out_corpora_are_measured_each_and_together(trained, tmp_path):
    plan = trained()
    config = plan.run_folder("vanilla", 0) / "config.yaml"
    values = yaml.safe_load(config.read_text())
    one = values["data"]["validation"]
    another = str(write_data(tmp_path / "other", 9))
    alone = measure.measure(plan, "vanilla", 0)
    assert alone.sources == {}
    values["data"]["validation"] = {"one": one, "other": another}
    config.write_text(yaml.safe_dump(values))
    both = measure.measure(plan, "vanilla", 0)
    assert both.sources["one"] == pytest.approx(alone.exact_loss)
    share = alone.samples / both.samples
    assert both.exact_loss == pytest.approx(share * both.sources["one"] + (1 - share) * both.sources["other"])


def test_prompts_are_part_of_what_is_measured(trained):
    first = measure.subject(trained(), "vanilla", 0)
    assert measure.subject(trained(prompts=["a"]), "vanilla", 0) != first


@pytest.mark.parametrize(
    "content", ["{", json.dumps({"loss": 1.0, "exact_loss": 1.0, "samples": 7, "texts": {}})]
)
def test_a_measurement_that_does_not_say_of_what_is_made_anew(content, trained):
    plan = trained()
    path = measure.measurement_path(plan, "vanilla", 0)
    path.parent.mkdir(parents=True)
    Path(path).write_text(content)
    assert measure.kept(plan, "vanilla", 0) is None
    assert measure.measure(plan, "vanilla", 0).loss != 1.0
