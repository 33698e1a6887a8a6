"""A training that starts from weights of others: its first loss is theirs, and what contradicts them is refused."""

import json
import re

import pytest
import torch
import transformers

from latentpt.config import ConfigError
from latentpt.data.batches import BatchStream
from latentpt.data.opening import open_training
from latentpt.hub.folders import export_folder
from latentpt.run.command import Start
from latentpt.training.start import load_run_config, load_start
from latentpt.training.trainer import build_model, train
from tests.conftest import tiny_model
from tests.training.small import losses

PUBLISHED = {
    "smollm": lambda: transformers.LlamaConfig(
        vocab_size=257, hidden_size=18, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        intermediate_size=40, tie_word_embeddings=True, max_position_embeddings=64, rms_norm_eps=1e-5,
    ),
    "pythia": lambda: transformers.GPTNeoXConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4},
    ),
    "llama3": lambda: transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=64, rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ),
}  # fmt: skip
CONTINUED = """
output: {output}
thoughts: {{method: {method}, num_thoughts: 1, refinements: 1, curriculum: [{{until_step: 1, num_thoughts: 0}}]}}
data: {{train: {data}/train, validation: {data}/validation, sequence_length: 12}}
training: {{start_from: {start}, steps: 3, batch_samples: 4, micro_batch: 4}}
optimizer: {{lr: 1e-2}}
validation: {{every: 3, samples: 4}}
monitor: {{every: 1, tensorboard: false}}
"""


def published(folder, name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(PUBLISHED[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def continued(tmp_path, data, start, method="latent"):
    file = tmp_path / "continue.yaml"
    file.write_text(CONTINUED.format(output=tmp_path / "run", data=data, start=start, method=method))
    return file


@pytest.mark.parametrize("method", ["latent", "pause", "sequential_hidden_decoding"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_loss_of_a_continued_pretraining_is_that_of_its_source(text, tmp_path, name, method):
    theirs = published(tmp_path / "hf", name)
    config = load_run_config(continued(tmp_path, text, tmp_path / "hf", method))
    assert config.model.family == ("pythia" if name == "pythia" else "llama")
    assert config.thoughts.embed_scale == 1.0 and config.model.max_positions == 64
    with BatchStream(open_training(config.data), config.seed, 4, 4, 0, 1, 0) as stream:
        tokens = next(stream)
    with torch.no_grad():
        logits = theirs(tokens[:, :-1]).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).item()
    train(config)
    found = losses(config)
    assert found[1] == pytest.approx(expected, abs=2e-5)
    assert len(found) == 3 and found[3] < 2 * expected
    train(
        load_run_config(continued(tmp_path, text, tmp_path / "hf", method)), Start("resume")
    )  # is the same training


def test_what_contradicts_the_source_is_refused_in_one_sentence(text, tmp_path):
    published(tmp_path / "hf", "smollm")
    file = continued(tmp_path, text, tmp_path / "hf")
    for override, said in [
        ("model.num_layers=3", "model.num_layers = 3 contradicts training.start_from"),
        ("model.family=gpt2", "contradicts training.start_from"),
        ("data.sequence_length=65", "data.sequence_length = 65 exceeds model.max_positions = 64"),
        ("training.start_from=nowhere", "training.start_from = nowhere: there is no such folder"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(said)) as error:
            load_run_config(file, [override])
        assert "\n" not in str(error.value)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    with pytest.raises(ConfigError, match="the key quantization_config"):
        load_run_config(file)


def test_a_thinking_export_is_continued_with_its_own_rows(text, tmp_path):
    source = tiny_model("llama", torch.float32, size={"vocab_size": 257}, method="pause", num_thoughts=1)
    export_folder(source, tmp_path / "hf")
    config = load_run_config(continued(tmp_path, text, tmp_path / "hf", "pause"))
    assert config.model == source.config and config.thoughts.embed_scale == source.method.embed_scale
    model = build_model(config)
    load_start(config, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
