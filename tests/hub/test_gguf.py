"""Plain exports in GGUF, the format of llama.cpp, by its own package: every tensor arrives, and a second reader agrees.

llama.cpp's converter is no package, so its mapping for LLaMA is written out here: names by the gguf package, rows of
queries and keys from halves to pairs, as llama.cpp turns them. llama.cpp itself does not run in these tests.
"""

import gguf
import numpy as np
import pytest
import torch
import transformers

from latentpt.hub.folders import export_folder, unrolled
from latentpt.hub.weights import read_json, read_weights
from tests.conftest import tiny_ids, tiny_model
from tests.hub.test_exports import load_there

ARCH = gguf.MODEL_ARCH.LLAMA


def in_pairs(weight, heads):
    """Rows of each head in the order 0, D/2, 1, D/2 + 1, .."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def in_halves(weight, heads):
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def heads_of(name, config):
    kinds = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return next((config[key] for part, key in kinds.items() if part in name), None)


def convert(folder, path):
    """A LLaMA folder as one GGUF file; returns the tensors by their GGUF names, as they lay in the folder."""
    config, state = read_json(folder / "config.json"), read_weights(folder)
    names = gguf.get_tensor_name_map(ARCH, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCH])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    written = {}
    for name, tensor in state.items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        heads = heads_of(name, config)
        array = tensor.numpy()
        writer.add_tensor(theirs, np.ascontiguousarray(array if heads is None else in_pairs(array, heads)))
        written[theirs] = (array, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


MODELS = {
    "vanilla": lambda: tiny_model("llama", torch.float32, weights=1.5),
    "vanilla-tied": lambda: tiny_model("llama", torch.float32, weights=1.5, size={"tie_embeddings": True}),
    "loop-unrolled": lambda: unrolled(
        tiny_model("llama", torch.float32, method="loop", num_thoughts=2, weights=1.5)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_export_arrives_in_gguf_to_the_digit_and_gives_the_same_logits(tmp_path, name):
    model, path = MODELS[name](), tmp_path / "gguf" / "model.gguf"
    export_folder(model, tmp_path / "hf")
    path.parent.mkdir()
    written = convert(tmp_path / "hf", path)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert found.keys() == written.keys() and len(found) >= 9 * model.config.num_layers
    for key, (array, heads) in written.items():
        read = found[key] if heads is None else in_halves(found[key], heads)
        assert np.array_equal(read, array), key
    there = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    ids = tiny_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(
            there(ids).logits, load_there(tmp_path / "hf")(ids).logits, atol=1e-6, rtol=0
        )
