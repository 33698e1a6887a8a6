"""The library's CUDA branches on a tiny model: devices agree, bf16 with ZeRO 1 and 3, inductor, recorded decoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from latentpt_kernels.decode import Layer, Norm, Place, decode_layer
from latentpt_kernels.graph import Captured

from latentpt.generation import decode
from latentpt.generation.decode import generate
from latentpt.generation.sampling import Sampling
from latentpt.generation.static import why_not_static
from latentpt.modeling.merge import KeyBlock, Relation, attend_blocks
from tests.conftest import VISIBLE, thinking, tiny_ids, tiny_model

ROOT = Path(__file__).resolve().parents[2]
METHODS = [
    ("vanilla", {}),
    ("latent", {}),
    ("latent", {"visibility": "stage_causal"}),
    ("loop", {}),
    ("pause", {}),
]


@pytest.mark.parametrize("method, thoughts", METHODS)
@pytest.mark.parametrize("mode", ["reference", "torch", "triton"])
def test_a_training_step_on_the_device_is_that_of_the_cpu(method, thoughts, mode, monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", mode)
    results = []
    for device in ("cpu", "cuda"):
        model = tiny_model("llama", torch.float32, weights=1.0, **thinking(method), **thoughts).to(device)
        ids = tiny_ids(2, 20).to(device)
        loss = model(ids, labels=ids, return_logits=False).loss
        loss.backward()
        results.append(
            [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]
        )
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merged_blocks_of_the_library_equal_float64(dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(2, 4, 200, 64, device="cuda", generator=generator).to(dtype) for _ in range(3))
    relations = [Relation.CAUSAL, Relation.STRICT]
    out = attend_blocks(q, [KeyBlock(k, v, r) for r in relations])
    exact = attend_blocks(
        q.double().cpu(), [KeyBlock(k.double().cpu(), v.double().cpu(), r) for r in relations]
    )
    torch.testing.assert_close(
        out.double().cpu(), exact, atol=1e-2 if dtype != torch.float32 else 1e-4, rtol=1e-2
    )


def test_a_captured_layer_is_the_layer_at_every_position():
    width, heads, capacity = 256, 4, 32
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, device="cuda", generator=generator) / shape[-1] ** 0.5

    norm = Norm(torch.ones(width, device="cuda"), None, 1e-5, "rms")
    layer = Layer(norm, random(3 * width, width), None, random(width, width), None, norm, random(8 * width, width), None,
                  random(width, 4 * width), None, "swiglu", False)  # fmt: skip
    angles = random(1, width // heads // 2)
    outcomes = []
    x = random(1, width)
    for captured in (True, False):
        k, v = (torch.zeros(1, heads, capacity, width // heads, device="cuda") for _ in range(2))
        cells = torch.zeros(1, dtype=torch.int32, device="cuda")

        def step(k=k, v=v, cells=cells):
            out = decode_layer(x, layer, k, v, Place(cells, 1, (0, 1)), angles.cos(), angles.sin())
            cells.add_(1)
            return out

        run = Captured(step, x.device) if captured else step
        outcomes.append(torch.stack([run().clone() for _ in range(8)]))
        assert not captured or run.graph is not None
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["pythia", "llama"])
@pytest.mark.parametrize("solver", ["jacobi", "gauss_seidel"])
def test_documents_kept_apart_on_the_device_give_the_step_of_the_cpu(family, solver):
    results = []
    for device in ("cpu", "cuda"):
        model = tiny_model(
            family, torch.float32, weights=1.0, method="latent", num_thoughts=1, solver=solver
        ).to(device)
        ids, documents = tiny_ids(2, 40).to(device), (torch.arange(40) // 13).expand(2, -1).to(device)
        loss = model(ids, labels=ids, documents=documents, return_logits=False).loss
        loss.backward()
        results.append(
            [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]
        )
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-4)


def recorded(monkeypatch):
    """The graphs that are made from here on."""
    made = []

    class Watched(Captured):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(decode, "Captured", Watched)
    return made


@pytest.mark.parametrize("mode", ["", "torch", "triton"])
@pytest.mark.parametrize("method, visibility", VISIBLE)
def test_a_text_is_recorded_once_where_it_can_be_and_is_that_of_the_cpu(
    method, visibility, mode, monkeypatch
):
    monkeypatch.setenv("LATENTPT_KERNELS", mode)
    family = ("pythia", "llama", "gpt2")[len(method) % 3]
    model = tiny_model(family, torch.float32, **thinking(method, 1), visibility=visibility)
    prompts = [[3, 4, 5], [6]]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LATENTPT_KERNELS")
        expected = generate(model, prompts, 12)
    made = recorded(monkeypatch)
    assert generate(model.cuda(), prompts, 12) == expected
    recordable = why_not_static(model) is None
    assert [captured.graph is not None for captured in made] == [True] * recordable


def test_sampled_texts_repeat_and_are_recorded_with_their_choice(monkeypatch):
    model = tiny_model("llama", torch.bfloat16, weights=1.0, method="latent", num_thoughts=1).cuda()
    warm = Sampling(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=4)
    made = recorded(monkeypatch)
    first, again = (generate(model, [[1, 2, 3], [4]], 20, warm) for _ in range(2))
    assert first == again and len(set(first[0])) > 3
    assert all(captured.graph is not None for captured in made)


CONFIG = """
output: out
model: {family: pythia, vocab_size: 300, hidden_size: 64, num_layers: 2, num_heads: 2, max_positions: 64}
thoughts: {method: latent, num_thoughts: 1, refinements: 1}
data: {train: data, validation: data, sequence_length: 64}
training: {steps: 60, batch_samples: 8, micro_batch: 8, precision: bf16}
optimizer: {lr: 3.0e-3}
validation: {every: 60, samples: 8}
monitor: {every: 5}
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiled, stage", [(False, 1), (True, 1), (False, 3)])
def test_bf16_training_runs_and_learns(compiled, stage, tmp_path):
    """data_prep on generated text, then launch/pretrain.py as a user runs it, with and without inductor."""
    lines = (
        json.dumps({"text": f"Line {i}: " + "a little text that repeats. " * (i % 7 + 1)}) for i in range(400)
    )
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(CONFIG)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

    def run(*arguments):
        answer = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]

    prepare = (sys.executable, "-m", "data_prep")
    run(
        *prepare,
        "train_tokenizer",
        "--input",
        "text.jsonl",
        "--output",
        "tokenizer.json",
        "--vocab-size",
        "300",
    )
    run(*prepare, "tokenize", "--input", "text.jsonl", "--tokenizer", "tokenizer.json", "--output", "data")
    pretrain = str(ROOT / "launch/pretrain.py")
    run(
        sys.executable,
        pretrain,
        "--config",
        "run.yaml",
        f"training.compile={str(compiled).lower()}",
        f"zero.stage={stage}",
    )
    kept = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in kept if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5
