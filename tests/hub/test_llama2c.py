"""llama2.c files: written here by the format's own words, read back through the hub."""

import struct

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.hub.folders import load_folder
from tests.conftest import tiny_ids, tiny_model
from tests.folders import shared

ORDER = {
    0: "embedding attention_norm q k v o mlp_norm gate down up norm angles head",
    1: "attention_norm mlp_norm norm embedding q k v o gate down up head",
}


def pairs(weight, heads):
    """Rows of each head from halves to pairs, the inverse of what reading does."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write(path, model, version):
    config, tied = model.config, model.config.tie_embeddings
    q_rows, kv_rows = config.num_heads * config.head_width, config.kv_heads * config.head_width
    layers = []
    for block in model.decoder.blocks:
        q, k, v = block.attention.qkv.weight.split([q_rows, kv_rows, kv_rows])
        gate, up = block.mlp.up.weight.chunk(2)
        layers.append({
            "attention_norm": block.attention_norm.weight, "mlp_norm": block.mlp_norm.weight,
            "q": pairs(q, config.num_heads), "k": pairs(k, config.kv_heads), "v": v,
            "o": block.attention.out.weight, "gate": gate, "up": up, "down": block.mlp.down.weight,
        })  # fmt: skip
    whole = {
        "embedding": model.decoder.embedding.weight, "norm": model.decoder.norm.weight,
        "angles": torch.zeros(config.max_positions, config.head_width), "head": model.decoder.head.weight,
    }  # fmt: skip
    sizes = [config.hidden_size, config.mlp_size, config.num_layers, config.num_heads, config.kv_heads]
    vocab = config.vocab_size if tied or version == 1 else -config.vocab_size
    header = struct.pack("<7i", *sizes, vocab, config.max_positions)
    if version == 1:
        header = (struct.pack("<Ii", 0x616B3432, 1) + header + bytes([tied])).ljust(256, b"\0")
    with path.open("wb") as file:
        file.write(header)
        for name in ORDER[version].split():
            if name == "head" and tied:
                continue
            for tensor in [whole[name]] if name in whole else [layer[name] for layer in layers]:
                file.write(tensor.detach().float().numpy().tobytes())


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_a_written_file_is_read_back(tmp_path, version, tied):
    model = tiny_model(dtype=torch.float32, size={"tie_embeddings": tied}, embed_scale=1.0)
    write(tmp_path / "model.bin", model, version)
    again, ids = load_folder(tmp_path / "model.bin"), tiny_ids()
    assert again.config.tie_embeddings is tied
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-6, rtol=0)


def test_the_published_file_equals_its_hugging_face_form():
    from_bin = load_folder(shared("models", "stories260K", "stories260K.bin"))
    from_folder = load_folder(shared("models", "stories260K", "hf"))
    ids = tiny_ids(2, 40, vocab=512)
    torch.testing.assert_close(from_bin(ids).logits, from_folder(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda content: content[:20], "too short"),
        (lambda content: content[:-4], "bytes, but its header asks for"),
        (lambda content: content + b"\0" * 4, "bytes, but its header asks for"),
        (lambda content: struct.pack("<i", -5) + content[4:], "gives dim = -5"),
        (
            lambda content: struct.pack("<2i", 2**20, 2**20) + content[8:],
            "header asks",
        ),
        (lambda content: struct.pack("<Ii", 0x616B3432, 2) + content, "version 2"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, said):
    path = tmp_path / "model.bin"
    write(path, tiny_model(dtype=torch.float32), 0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError) as error:
        load_folder(path)
    assert said in str(error.value) and str(path) in str(error.value)
