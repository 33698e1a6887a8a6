"""A tiny base run, comparisons over it, and a trainer that only pretends."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from latentpt.compare.config import load_comparison
from latentpt.data.indexed import ShardWriter

BASE = {
    "model": {
        "family": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 32,
    },
    "data": {"sequence_length": 16},
    "training": {"steps": 100, "batch_samples": 4, "micro_batch": 2},
}
LATENT = {"thoughts": {"method": "latent", "num_thoughts": 1, "refinements": 1}}
STAGES = {"thoughts": {"method": "latent", "num_thoughts": 1, "visibility": "stage_causal"}}

# Writes what a training leaves behind. The environment says at which launch it fails or is interrupted.
TRAINER = """
import json, os, random, sys
from pathlib import Path
import yaml
config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
folder = Path(config["output"])
mark = folder / "checkpoints" / "step-00000030" / "COMMIT"
mark.parent.mkdir(parents=True, exist_ok=True)
mark.write_text(str(os.getpid()))  # the content of every training is its own
(folder / "config.yaml").write_text(yaml.safe_dump(config))
with open(os.environ["LAUNCHES"], "a") as launches:
    launches.write(folder.name + "\\n")
number = len(Path(os.environ["LAUNCHES"]).read_text().splitlines())
if number == int(os.environ.get("FAIL_AT", 0)):
    sys.exit(1)
if number == int(os.environ.get("STOP_AT", 0)):
    sys.exit(0)
thoughts = config["thoughts"]["num_thoughts"]
chance = random.Random(0)
tokens = config["training"]["tokens"] or 1000
lines = []
for point in range(1, 31):
    # A step takes a little more or less; the first ones warm up, and now and then one is held up.
    took = (1 + thoughts) / 1000 * chance.uniform(0.97, 1.03)
    took *= (20 if point < 4 else 1) * (3 if point % 11 == 0 else 1)
    shared = {"step": point, "tokens": point * tokens / 10, "training_flops": point * 1e9, "seconds": point * (1.0 + thoughts) / 3}
    loss = 4.0 - 0.1 * thoughts - 0.06 * point + 0.01 * config["seed"]
    lines.append({"kind": "train", **shared, "loss": loss, "tokens_per_second": 1 / took})
    lines.append({"kind": "validation", **shared, "loss": loss})
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    """A function that writes a comparison with some keys changed and loads it."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("data").mkdir()
    with ShardWriter("data/validation", np.uint16) as shard:
        shard.add_document(np.zeros(100, dtype=np.uint16))

    def make(**changes):
        values = {"base": "base.yaml", "output": "out", "processes": 1, **changes}
        values.setdefault("arms", {"vanilla": {}, "latent": LATENT, "stages": STAGES})
        Path("comparison.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return load_comparison("comparison.yaml")

    return make


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """The pretending trainer and a function that lists the runs it was launched for."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    launches = tmp_path / "launches.txt"
    monkeypatch.setenv("LAUNCHES", str(launches))
    return script, lambda: launches.read_text().split() if launches.exists() else []


@pytest.fixture
def measured(monkeypatch):
    """A stand-in for the measurement of a trained model; returns what it was asked to measure."""
    from latentpt.compare.running import measure

    asked = []

    def pretend(plan, arm, seed):
        asked.append((arm, seed))
        path = measure.measurement_path(plan, arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        alone = {"vanilla": 2.0, "latent": 1.9, "stages": 1.995}[arm]
        loss = alone + 0.01 * seed + 0.01 * ((seed + len(arm)) % 2)
        record = {
            "of": measure.subject(plan, arm, seed),
            "loss": loss - 0.001,
            "exact_loss": loss,
            "samples": 8,
            "texts": {"The ": "<cat> sat"},
        }
        path.write_text(json.dumps(record))

    return pretend, asked
