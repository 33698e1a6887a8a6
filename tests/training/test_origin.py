"""Where a training starts: the newest checkpoint whose files are what was written, chosen once for all ranks."""

import json
import re

import pytest
import torch
import transformers

from latentpt.config import ConfigError
from latentpt.data.batches import BatchStream
from latentpt.data.opening import open_training
from latentpt.files import exclusive
from latentpt.hub.folders import export_folder
from latentpt.run import checkpoints
from latentpt.training.origin import load_run_config, load_start
from latentpt.training.trainer import build_model, train
from tests.conftest import tiny_model
from tests.training.small import finish, losses, start_ranks, tiny_run

# One of two ranks whose seed is its rank; it ends well if that is refused.
OTHER_SEEDS = """
import os, sys
from pathlib import Path
from tests.training.small import tiny_run
from latentpt.config import ConfigError
from latentpt.training.trainer import train
try:
    train(tiny_run(Path(sys.argv[2]), Path(sys.argv[1]), seed=int(os.environ["RANK"])))
except ConfigError as error:
    assert str(error) == "rank 1 has seed = 1 where rank 0 has 0; start all ranks alike", error
else:
    sys.exit("was not refused")
"""


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def saved(config):
    return [path.name for path in sorted(config.folder.checkpoints.iterdir())]


def test_the_newest_intact_checkpoint_is_taken_loudly_and_the_damaged_one_is_kept(text, tmp_path, capfd):
    def run(name, **training):
        return tiny_run(tmp_path / name, text, checkpoint={"every": 2, "keep_last": 2}, training=training)

    whole, config = run("whole"), run("parts")
    train(whole)
    train(run("parts", stop_at=4))
    damaged = config.folder.checkpoints / "step-00000004" / "moments-00000-of-00001.safetensors"
    flip_a_byte(damaged)
    train(config)
    assert f"warning: {damaged} is damaged: its content is not what was written" in capfd.readouterr().err
    assert losses(config) == losses(whole)
    assert [name.partition(".")[0] for name in saved(config)] == [
        "step-00000004",
        "step-00000006",
        "step-00000008",
    ]
    assert saved(config)[0].startswith("step-00000004.set-aside-")


def test_without_an_intact_checkpoint_nothing_is_begun_anew_or_removed(text, tmp_path):
    config = tiny_run(tmp_path / "run", text, training={"stop_at": 2}, checkpoint={"every": 1})
    train(config)
    for path in checkpoints.committed(config.folder.checkpoints):
        flip_a_byte(path / "weights-00000-of-00001.safetensors")
    before = sorted(config.folder.path.rglob("*"))
    with pytest.raises(
        ConfigError, match=r"none of the 2 checkpoints .* is intact .* --fresh sets the folder aside"
    ):
        train(tiny_run(tmp_path / "run", text))
    assert sorted(config.folder.path.rglob("*")) == before


@pytest.mark.parametrize("start", ["auto", "resume", "fresh"])
def test_two_trainings_in_one_folder_are_refused_and_the_next_may_start_when_the_first_has_ended(
    start, text, tmp_path
):
    config = tiny_run(tmp_path / "run", text, training={"stop_at": 1})
    train(config)
    before = sorted(tmp_path.rglob("*"))
    with (
        exclusive(config.folder.path),
        pytest.raises(ConfigError, match="is being trained by another process"),
    ):
        train(config, start)
    assert sorted(tmp_path.rglob("*")) == before
    assert train(tiny_run(tmp_path / "run", text, training={"steps": 2}), start).step == 2


@pytest.mark.slow
def test_ranks_that_were_started_differently_are_refused_before_anything_is_written(text, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(OTHER_SEEDS)
    finish(start_ranks(2, script, text, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- weights of others

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
        load_run_config(continued(tmp_path, text, tmp_path / "hf", method)), "resume"
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
