"""What transformers' tools expect of a model beyond logits, of exports that bring their own modeling file."""

import ast
import json
import os
import sys
import time

import peft
import pytest
import torch
import transformers

from latentpt.data.tokenizer import load_tokenizer
from latentpt.hub.folders import MODELING_FILES, export_folder, load_folder, special_ids, unrolled
from latentpt.hub.recurrence import EXPORTED
from tests.conftest import FAMILIES, thinking, tiny_ids, tiny_model
from tests.folders import launch, shared, write_run, write_tokenizer
from tests.hub.test_exports import exact, load_there, modules  # noqa: F401  (modules is for every test)

TURNS = [(method, FAMILIES[number % 3]) for number, method in enumerate(EXPORTED)]
"""Every method in one family."""
SOLVERS = {
    "jacobi": {"solver": "jacobi", "refinements": 2},
    "truncated": {"solver": "jacobi", "refinements": 2, "bptt_passes": 2},
    "gauss-seidel": {"solver": "gauss_seidel", "refinements": 1},
    "stage-causal": {"visibility": "stage_causal"},
    "sequential": {"solver": "sequential"},
}


def both(tmp_path, family="llama", size=None, **thoughts):
    """A model in float64 and what transformers loads of its export."""
    model = tiny_model(family, size=size, weights=1.5, **thoughts)
    export_folder(model, tmp_path / "hf", dtype=torch.float64)
    return model, load_there(tmp_path / "hf").double()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("method", ["latent", "latent_mixture", "ponder"])
def test_an_export_in_training_follows_the_schedule_of_the_method(tmp_path, method, solver):
    model, there = both(tmp_path, method=method, num_thoughts=2, **SOLVERS[solver])
    ids = tiny_ids(2, 7)
    there.train()
    found = there(ids, labels=ids)
    ours = model(ids, labels=ids, schedule=model.method.schedule())
    torch.testing.assert_close(found.loss, ours.loss.to(found.loss.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.logits, ours.logits, atol=1e-9, rtol=0)
    found.logits.square().mean().backward()
    ours.logits.square().mean().backward()
    theirs = dict(there.named_parameters())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in theirs:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("method", "family"), TURNS)
def test_checkpointed_training_has_the_gradients_of_the_whole(tmp_path, family, method):
    _, there = both(tmp_path, family, {"num_layers": 3}, **thinking(method), refinements=1)
    ids = tiny_ids(2, 6)
    there.train()
    there(ids, labels=ids).loss.backward()
    whole = {name: p.grad for name, p in there.named_parameters()}
    there.zero_grad()
    there.gradient_checkpointing_enable()
    assert there.is_gradient_checkpointing
    there(ids, labels=ids).loss.backward()
    for name, parameter in there.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name])


@pytest.mark.parametrize(("method", "family"), TURNS)
def test_embeddings_stand_for_ids_and_hidden_states_lead_to_the_logits(tmp_path, family, method):
    model, there = both(tmp_path, family, {"num_layers": 3}, **thinking(method, 1))
    ids = tiny_ids(2, 5)
    with torch.no_grad():
        out = there(ids, output_hidden_states=True)
        assert len(out.hidden_states) == model.config.num_layers + 1
        assert all(state.shape == (2, 5, 16) for state in out.hidden_states)
        torch.testing.assert_close(there.decoder.logits(out.hidden_states[-1]), out.logits)
        embeds = there.get_input_embeddings()(ids)
        if method == "sequential_hidden_decoding":
            with pytest.raises(ValueError, match="needs input_ids, not inputs_embeds"):
                there(inputs_embeds=embeds)
            return
        torch.testing.assert_close(there(inputs_embeds=embeds).logits, out.logits)
        made = there.generate(inputs_embeds=embeds, max_new_tokens=4, do_sample=False, pad_token_id=0)
        whole = there.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(made, whole[:, 5:])
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        there(ids, inputs_embeds=embeds)


@pytest.mark.parametrize("method", ["latent", "loop", "lrt", "dual_slot", "alcot"])
def test_assisted_decoding_gives_the_same_tokens(tmp_path, method):
    _, there = both(tmp_path, **thinking(method, 1))
    helper = tiny_model("llama", torch.float32, seed=1)
    export_folder(helper, tmp_path / "helper")
    ids = tiny_ids(1, 5)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    alone = there.generate(ids, **options)
    helped = there.generate(ids, assistant_model=load_there(tmp_path / "helper"), **options)
    assert torch.equal(alone, helped)


def test_peft_adapts_without_being_told_what(tmp_path):
    _, there = both(tmp_path, method="latent", num_thoughts=1)
    adapted = peft.get_peft_model(there, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    names = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, _ in adapted.named_parameters()
        if "lora_A" in name
    }
    assert names == {"qkv", "out", "up", "down"}
    adapted.train()
    ids = tiny_ids(2, 6)
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n
    )


def test_the_loss_of_accumulated_batches_is_over_all_their_labels(tmp_path):
    _, there = both(tmp_path, method="latent", num_thoughts=1)
    ids = tiny_ids(2, 6)
    mean = there(ids, labels=ids).loss
    torch.testing.assert_close(there(ids, labels=ids, num_items_in_batch=20).loss, mean / 2)
    torch.testing.assert_close(there(ids, labels=ids, logits_to_keep=1).loss, mean)


@pytest.mark.parametrize(
    "traits",
    [
        {"qk_norm": "head", "qkv_bias": True, "logit_softcap": 4.0},
        {"qk_norm": "full", "norm_place": "post"},
        {"norm_place": "both", "norm_offset": 1.0, "activation": "geglu"},
        {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_positions": 4}},
        {"rope_scaling": {"kind": "llama3", "factor": 4.0, "original_positions": 8}},
    ],
    ids=lambda traits: "-".join(traits),
)
def test_traits_travel(tmp_path, traits):
    model, there = both(tmp_path, size=traits, method="latent", num_thoughts=1)
    ids = tiny_ids(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(there(ids).logits, exact(model, ids), atol=1e-9, rtol=0)
    again = load_folder(tmp_path / "hf")
    assert again.config == model.config and torch.equal(again(ids).logits, model(ids).logits)


def test_positions_under_dynamic_scaling_end_where_keys_would_turn(tmp_path):
    scaling = {"rope_scaling": {"kind": "dynamic", "factor": 2.0}, "max_positions": 8}
    model, there = both(tmp_path, size=scaling, method="latent", num_thoughts=1)
    ids = tiny_ids(1, 9)
    with torch.no_grad():
        torch.testing.assert_close(there(ids[:, :8]).logits, exact(model, ids[:, :8]), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="9 positions exceed 8"):
        there(ids)


@pytest.mark.parametrize("family", ["pythia", "llama", "gpt2"])
def test_an_unrolled_loop_is_a_plain_model_of_a_stock_class(tmp_path, family, monkeypatch, capsys):
    model = tiny_model(family, torch.float32, method="loop", num_thoughts=2, weights=1.5)
    ids, out = tiny_ids(2, 7), tmp_path / "hf"
    export_folder(unrolled(model), out)
    there = load_there(out)
    assert not type(there).__name__.startswith("Latentpt") and there.config.num_hidden_layers == 6
    with torch.no_grad():
        torch.testing.assert_close(there(ids).logits, exact(model, ids), atol=1e-4, rtol=0)
        torch.testing.assert_close(unrolled(model)(ids).logits, exact(model, ids), atol=1e-5, rtol=0)
    thinking = tiny_model(family, torch.float32, method="latent", num_thoughts=1)
    write_run(tmp_path / "other", thinking, tmp_path)
    assert (
        launch("export", monkeypatch, "--run", tmp_path / "other", "--output", tmp_path / "no", "--unroll")
        == 2
    )
    assert "thoughts.method = latent cannot be unrolled" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_files_have_the_mode_that_new_files_get(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        tokenizer = load_tokenizer(write_tokenizer(tmp_path / "data"))
        export_folder(tiny_model(method="latent", num_thoughts=1), tmp_path / "hf", tokenizer, "card")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "hf").iterdir()}
    assert set(modes.values()) == {mode}, modes


@pytest.mark.parametrize("form", ["hf", "stories260K.bin"])
def test_the_token_that_begins_a_text_is_kept(tmp_path, monkeypatch, form):
    source, out = shared("models", "stories260K", form), tmp_path / "hf"
    tokenizer = (
        [] if form == "hf" else ["--tokenizer", shared("models", "stories260K", "hf", "tokenizer.json")]
    )
    assert launch("export", monkeypatch, "--model", source, "--output", out, *tokenizer) == 0
    for name in ("config.json", "generation_config.json"):
        written = json.loads((out / name).read_text())
        assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)
    read = transformers.AutoTokenizer.from_pretrained(out)
    assert (read.bos_token, read.eos_token) == ("<s>", "</s>")
    assert read("Once upon a time")["input_ids"][0] == 1
    assert special_ids(out)["bos_token_id"] == 1
    assert launch("export", monkeypatch, "--model", out, "--output", tmp_path / "again") == 0
    assert special_ids(tmp_path / "again") == special_ids(out)


@pytest.mark.parametrize("reader", [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast])
def test_the_tokenizer_of_a_thinking_model_is_read_without_asking_or_running_code(
    tmp_path, monkeypatch, reader
):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "data"))
    export_folder(tiny_model(method="latent", num_thoughts=1), tmp_path / "hf", tokenizer)
    (tmp_path / "hf" / "modeling_latentpt.py").write_text("raise SystemExit('code of the folder was run')")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    read = reader.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    assert not asked and isinstance(read, transformers.PreTrainedTokenizerFast)
    assert type(read).__module__.startswith("transformers.")
    assert read("a café")["input_ids"] == tokenizer.encode("a café")


@pytest.mark.slow
def test_training_in_parallel_takes_a_fraction_of_cell_by_cell(tmp_path):
    size = {"hidden_size": 64, "vocab_size": 512, "max_positions": 256, "intermediate_size": 128}
    model = tiny_model("llama", torch.float32, size=size, method="latent", num_thoughts=1, refinements=3)
    export_folder(model, tmp_path / "hf")
    there, ids = load_there(tmp_path / "hf").train(), tiny_ids(4, 128, vocab=512)

    def seconds(cell_by_cell):
        begin = time.process_time()
        given = {"past_key_values": transformers.DynamicCache()} if cell_by_cell else {}
        there(ids, labels=ids, **given).loss.backward()
        there.zero_grad()
        return time.process_time() - begin

    seconds(False), seconds(True)
    a, b, c, d = seconds(True), seconds(False), seconds(False), seconds(True)
    ratio = (a + d) / (b + c)
    print(
        f"a step cell by cell takes {ratio:.1f} times as long as in parallel ({a + d:.2f} s to {b + c:.2f} s)"
    )
    assert ratio > 3


def test_an_export_imports_torch_and_transformers_alone(tmp_path):
    export_folder(tiny_model(method="latent", num_thoughts=1), tmp_path / "hf")
    files = sorted((tmp_path / "hf").glob("*.py"))
    assert [file.name for file in files] == sorted(file.name for file in MODELING_FILES)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.py"] if node.level else [node.module]
            there = {"torch", "transformers", *sys.stdlib_module_names}
            assert all((file.parent / name).is_file() or name.split(".")[0] in there for name in names)


def test_what_transformers_saves_again_it_loads_again(tmp_path):
    _, there = both(tmp_path, size={"num_layers": 3}, method="dual_slot", num_thoughts=1)
    there.save_pretrained(tmp_path / "again")
    assert {file.name for file in MODELING_FILES} <= {file.name for file in (tmp_path / "again").iterdir()}
    ids = tiny_ids()
    torch.testing.assert_close(load_there(tmp_path / "again").double()(ids).logits, there(ids).logits)
