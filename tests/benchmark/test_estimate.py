"""Estimates against the real step on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from latentpt.benchmark.dry_run import Where, estimated
from latentpt.benchmark.estimate import estimate
from latentpt.benchmark.memory import PeakMemory
from latentpt.config import ConfigError
from latentpt.run import RunConfig
from latentpt.thoughts.model import LanguageModel

ARMS = {
    "vanilla": {},
    "jacobi": {"method": "latent", "num_thoughts": 1, "refinements": 2},
    "truncated": {"method": "latent", "num_thoughts": 1, "refinements": 2, "bptt_passes": 1},
    "stage": {"method": "latent", "num_thoughts": 2, "visibility": "stage_causal"},
    "ponder": {"method": "ponder", "num_thoughts": 1},
}


def config_of(thoughts, layers=2, **training):
    return RunConfig(
        model={
            "vocab_size": 300,
            "hidden_size": 64,
            "num_layers": layers,
            "num_heads": 4,
            "max_positions": 64,
        },
        thoughts=thoughts,
        data={"sequence_length": 64},
        training={"tokens": 6400, "batch_samples": 4, "micro_batch": 4, **training},
    )


def real_peak(config, samples):
    model = LanguageModel(
        config.model, config.thoughts, checkpoint_activations=config.training.checkpoint_activations
    )
    tokens = torch.zeros(samples, 65, dtype=torch.long)
    with PeakMemory(outside=[*model.parameters(), tokens]) as memory:
        model(tokens[:, :-1], targets=tokens[:, 1:], return_logits=False).loss.backward()
    return memory.peak


@pytest.mark.parametrize(
    ("name", "checkpointed"),
    [("vanilla", False), ("jacobi", True), ("truncated", False), ("stage", True), ("ponder", False)],
)
def test_estimated_activations_equal_those_of_the_real_step(name, checkpointed):
    config = config_of(ARMS[name], checkpoint_activations=checkpointed)
    real = real_peak(config, 3) - real_peak(config, 2)
    assert estimate(config).sample_bytes == pytest.approx(real, rel=0.05)


def test_checkpointing_and_truncation_save_what_they_promise():
    full = real_peak(config_of(ARMS["jacobi"]), 2)
    assert real_peak(config_of(ARMS["truncated"]), 2) < 0.6 * full
    assert real_peak(config_of(ARMS["jacobi"], checkpoint_activations=True), 2) < 0.6 * full


def test_the_estimate_names_every_figure_with_its_unit_and_tells_no_time_of_an_unknown_speed():
    text = estimated(config_of(ARMS["jacobi"]), Where(devices=2, memory_gib=1.0))
    for word in ("parameters", "FLOPs per token", "GiB", "largest micro-batch", "bytes"):
        assert word in text
    assert "not told (give --mfu)" in text and "tokens/s" not in text
    assert "none fits" in estimated(config_of({}), Where(memory_gib=1e-6))


def test_time_follows_from_a_known_peak_and_a_stated_share_of_it():
    config = config_of({}, precision="bf16")
    text = estimated(config, Where(devices=4, device="NVIDIA H100 80GB HBM3", mfu=0.25, price=2.0))
    found = estimate(config, 4)
    rate = 0.25 * 989.4e12 * 4
    assert f"{rate / found.cost.total:,.0f} tokens/s" in text and "computed: 25% of the peak" in text
    assert "of 80.0" in text and "cost" in text
    single = estimated(config_of({}), Where(device="H100", mfu=0.25))
    assert "not told (the peak of the device is not known)" in single, "the table has no fp32 peaks"
    with pytest.raises(ConfigError, match="the nearest that is: H100"):
        estimated(config, Where(device="H10"))


def test_a_continued_training_is_estimated_at_the_size_of_its_source(tmp_path):
    source = transformers.LlamaConfig(
        vocab_size=257, hidden_size=18, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=64,
    )  # fmt: skip
    source.save_pretrained(tmp_path / "hf")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: {{sequence_length: 64}}\ntraining: {{start_from: {tmp_path / 'hf'}, steps: 1, batch_samples: 8}}\n"
    )
    script = Path(__file__).resolve().parents[2] / "launch" / "bench.py"
    command = [sys.executable, str(script), "--config", str(file), "--estimate"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    size = transformers.AutoModelForCausalLM.from_config(source).num_parameters()
    assert told.splitlines()[0].split()[:2] == ["parameters", f"{size:,}"]
