"""An exported model generates with transformers what it generates here."""

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.finetuning import latent_forward, latent_generate
from latentpt.finetuning.building import write_symbol_tokenizer
from latentpt.finetuning.publish import export_reasoner
from latentpt.finetuning.reasoner import Reasoner, Recipe, load_reasoner, save_reasoner
from latentpt.finetuning.vocabulary import marked
from latentpt.hub.folders import load_folder
from tests.conftest import tiny_model

MARKS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
CASES = {
    "coconut": {"kind": "hidden"},
    "a layer below": {"kind": "fusion", "layer": -2, "adapter": 5},
    "soft": {"kind": "soft"},
    "pause": {"kind": "pause", "mode": "pause"},
    "switching": {"kind": "hidden", "mode": "lt_tuning", "switch": "argmax", "switch_most": 2},
    "threshold": {"kind": "fusion", "mode": "lt_tuning", "switch": "threshold", "switch_tau": 0.6, "inclusive": False},
    "thinking inside": {"kind": "hidden", "thoughts": {"method": "latent", "num_thoughts": 1}},
    "scaled": {"kind": "fusion", "thoughts": {"embed_scale": 2.0}},
}  # fmt: skip


def made(tmp_path, family, thoughts=None, **recipe):
    """A reasoner with random weights, its recipe and tokenizer."""
    write_symbol_tokenizer(tmp_path / "plain" / "tokenizer.json", 20)
    (tmp_path / "tokenizer.json").write_bytes(marked(load_tokenizer(tmp_path / "plain"), MARKS))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    model = tiny_model(family, torch.float32, size={"vocab_size": tokenizer.vocab_size}, **(thoughts or {}))
    marks = tuple(tokenizer.token_id(mark) for mark in MARKS)
    values = {
        "mode": "coconut", "stage": 2, "latents": 3, "markers": marks, "end": 0, "layer": -1, "alpha": 0.6,
        "top_p": 0.8, "temperature": 1.0, "inclusive": True, "adapter": 0, "switch": "never", "switch_tau": 0.5,
        "switch_most": None, "extraction": "after_hash", "model": model.config, "thoughts": model.thoughts, **recipe,
    }  # fmt: skip
    torch.manual_seed(0)
    return Reasoner(model, values["adapter"]).eval(), Recipe(**values), tokenizer


@pytest.mark.parametrize("case", CASES)
def test_transformers_generates_the_same_tokens(case, family, tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    reasoner, recipe, tokenizer = made(tmp_path, family, **CASES[case])
    if recipe.mode == "lt_tuning":  # random weights hardly ever say one token of all
        with torch.no_grad():
            logits = latent_forward(
                reasoner.language, torch.tensor([[11, 12, 13, 14]]), reasoner.fill(recipe)
            ).logits
            best, said = logits[0, -1].max(dim=-1)
            head = reasoner.language.decoder.head.weight
            head[recipe.markers[2]] = head[said] * (1.01 if best > 0 else 0.99)
    export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    questions = [[11, 12, 13, 14], [15, 16], [17, 18, 19]]
    prompts = [recipe.prompt(question) for question in questions]
    ours = latent_generate(
        reasoner.language, prompts, reasoner.fill(recipe), 8, recipe.end, recipe.decision()
    )
    if recipe.mode == "lt_tuning":
        assert any(recipe.markers[2] in row for row in ours)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    found = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8)[:, width:].tolist()
    for row, expected in zip(found, ours, strict=True):
        assert row[: len(expected)] == expected


def test_transformers_gives_the_same_logits(family, tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    reasoner, recipe, tokenizer = made(tmp_path, family, kind="fusion", layer=-2)
    export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    latent = recipe.markers[2]
    ids = torch.tensor([[11, 12, latent, 13, latent, latent], [11, latent, 12, 13, 14, 15]])
    with torch.no_grad():
        expected = latent_forward(reasoner.language, ids, reasoner.fill(recipe)).logits
        found = theirs(ids, labels=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_code_on_the_card_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    reasoner, recipe, tokenizer = made(tmp_path, "llama", kind="hidden")
    export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "hf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert code.count("trust_remote_code") == 1  # the tokenizer brings no code
    exec(code.replace("YOUR QUESTION", "1 2 | 2 3 ? 3 4 @ 1"), {})
    assert capsys.readouterr().out.startswith("1 2 | 2 3")


def test_a_saved_reasoner_is_read_back_whole(tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, "gpt2", kind="fusion", adapter=4)
    save_reasoner(tmp_path / "kept", dict(reasoner.named_parameters()), recipe, tokenizer)
    again, same, other = load_reasoner(tmp_path / "kept")
    assert same == recipe and other.token_id("<|latent|>") == recipe.markers[2]
    for name, parameter in reasoner.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter)


def test_an_export_is_read_back_as_a_reasoner_and_as_a_plain_model(family, tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, family, kind="fusion", adapter=4)
    export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    again, same, _ = load_reasoner(tmp_path / "hf")
    assert same == recipe
    for name, parameter in reasoner.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter)
    ids = torch.tensor([[11, 12, 13]])
    assert torch.equal(load_folder(tmp_path / "hf")(ids).logits, reasoner.language(ids).logits)


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, "llama", kind="hidden")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    assert (tmp_path / "hf" / "mine").read_text() == "keep"


def test_a_model_that_carries_states_is_not_exported_as_if_it_did_not(tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, "llama", kind="hidden", thoughts={"method": "lrt"})
    with pytest.raises(
        ConfigError, match=r"thoughts\.method = lrt with its carry .* the nearest method that can is latent"
    ):
        export_reasoner(reasoner, recipe, tokenizer, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a fine-tuned model"):
        load_reasoner(tmp_path)
