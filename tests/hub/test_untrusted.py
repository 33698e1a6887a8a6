"""Folders from strangers: nothing in them runs, nothing outside them is opened, every refusal names the file."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentpt.config import ConfigError
from latentpt.hub.folders import export_folder, load_folder
from tests.conftest import tiny_ids, tiny_model


@pytest.fixture
def folder(tmp_path):
    export_folder(tiny_model(dtype=torch.float32), tmp_path / "model")
    return tmp_path / "model"


def split(folder, places):
    """Cut the weights in two files and write an index with `places` laid over the true one."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    weight_map = {}
    for file, members in halves.items():
        save_file({name: state[name] for name in members}, folder / file)
        weight_map.update(dict.fromkeys(members, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, **places}}))
    return names


def refusal(path):
    with pytest.raises(ConfigError) as error:
        load_folder(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sharded_and_pickled_weights_are_read_like_whole_ones(folder):
    ids = tiny_ids()
    expected = load_folder(folder)(ids).logits
    state = load_file(folder / "model.safetensors")
    split(folder, {})
    assert torch.equal(load_folder(folder)(ids).logits, expected)
    (folder / "model.safetensors.index.json").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_folder(folder)(ids).logits, expected)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b"])
def test_an_index_cannot_name_files_outside_the_folder(folder, name):
    save_file({"x": torch.zeros(1)}, folder.parent / "outside.safetensors")
    split(folder, {"x": name})
    assert "outside the folder" in refusal(folder)


def test_an_index_must_tell_the_truth(folder):
    names = split(folder, {})
    index = folder / "model.safetensors.index.json"
    truth = json.loads(index.read_text())["weight_map"]
    for wrong, said in [
        ({"ghost": "a.safetensors"}, "ghost lies in a.safetensors, which does not have it"),
        ({names[0]: "b.safetensors"}, f"says that {names[0]} lies in b.safetensors"),
        ({"ghost": "c.safetensors"}, "names the file c.safetensors, which is missing"),
    ]:
        index.write_text(json.dumps({"weight_map": {**truth, **wrong}}))
        assert said in refusal(folder)
    index.write_text(json.dumps({"weights": 1}))
    assert "has no weight_map" in refusal(folder)


def test_a_pickle_that_would_run_code_is_not_opened(folder):
    class Harm:
        def __reduce__(self):
            return (open, (str(folder / "harm"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Harm()}, folder / "pytorch_model.bin")
    assert "holds more than tensors" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    assert "pytorch_model.bin" in refusal(folder)
    assert not (folder / "harm").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: is damaged" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"model_type": 3}', '{"model_type": "llama"}', "[" * 100_000]
)
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    "key", ["hidden_size", "rope_parameters", "num_hidden_layers", "vocab_size", "latentpt"]
)
def test_a_configuration_of_wrong_kinds_is_refused(folder, key):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "many"}))
    assert str(folder) in refusal(folder)


def test_missing_pieces_are_named(folder, tmp_path):
    assert "neither a folder" in refusal(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json: there is no such file" in refusal(folder)


def test_an_export_with_a_wrong_tensor_is_refused(tmp_path):
    folder = tmp_path / "thinking"
    export_folder(tiny_model(dtype=torch.float32, method="latent", num_thoughts=1), folder)
    state = load_file(folder / "model.safetensors")
    state["decoder.norm.wait"] = state.pop("decoder.norm.weight")
    save_file(state, folder / "model.safetensors")
    assert "tensor decoder.norm.weight is missing" in refusal(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["latentpt"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "no latentpt entry" in refusal(folder)
