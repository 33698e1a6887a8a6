"""Exports as transformers sees them: the same logits, the same tokens from its own generate."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from latentpt.config import ConfigError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.evaluation.results import Figures, Measurement, keep_results
from latentpt.generation.decode import generate
from latentpt.hub import folders
from latentpt.hub.card import model_card
from latentpt.hub.folders import export_folder, load_folder, loading_class
from latentpt.hub.recurrence import READS
from latentpt.thoughts.identity import identity
from tests.conftest import VISIBLE, thinking, tiny_ids, tiny_model
from tests.folders import BYTES_VOCAB, launch, shared, write_run, write_tokenizer

PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9, 10]]


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """transformers copies modeling files into a package before it imports them; it shall do that here, for one test."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    places = [place for place in sys.path if not (Path(place) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", places)
    for place in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{place}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    forget()
    yield
    forget()


def load_there(folder):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    return loaded.eval()


def generate_there(model, prompts, new):
    """Left-padded, with a mask, as one batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[:, longest:].tolist()


def exact(model, ids):
    return model(ids, schedule=model.method.exact_schedule()).logits


@pytest.mark.parametrize(("method", "visibility"), [pair for pair in VISIBLE if pair[0] != "vanilla"])
def test_every_method_thinks_the_same_in_transformers(tmp_path, family, method, visibility):
    size, thoughts = {"num_layers": 3}, thinking(method)
    model = tiny_model(family, torch.float32, size=size, **thoughts, visibility=visibility, weights=1.5)
    export_folder(model, tmp_path / "hf")
    there, ids = load_there(tmp_path / "hf"), tiny_ids(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(there(ids).logits, exact(model, ids), atol=1e-4, rtol=0)
        assert generate_there(there, PROMPTS, 6) == generate(model, PROMPTS, 6)
    again = load_folder(tmp_path / "hf")
    assert torch.equal(again(ids).logits, model(ids).logits) and again.thoughts == model.thoughts


def test_a_method_that_the_modeling_file_does_not_know_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(READS, "p2n")
    with pytest.raises(
        ConfigError, match=r"thoughts.method = p2n has no export yet; the nearest method that has is"
    ):
        export_folder(tiny_model("llama", torch.float32, method="p2n"), tmp_path / "hf")
    assert not list(tmp_path.glob("hf*"))


@pytest.mark.parametrize("method", READS)
def test_the_card_of_every_method_says_how_it_thinks(method):
    model = tiny_model("llama", torch.float32, size={"num_layers": 3}, **thinking(method))
    text = model_card("name", model, loading_class(model), {})
    assert "{" not in text and ("plain decoder" in text) == (method == "vanilla")


@pytest.mark.parametrize("options", [{"top_k": 5}, {"cumulative": True}], ids=str)
def test_the_options_of_mixtures_travel(tmp_path, options):
    model = tiny_model("llama", torch.float32, method="ponder", num_thoughts=2, **options)
    export_folder(model, tmp_path / "hf")
    ids = tiny_ids()
    torch.testing.assert_close(load_there(tmp_path / "hf")(ids).logits, exact(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_model_is_written_as_the_stock_class_with_its_scale_folded_in(tmp_path, family, tied):
    model = tiny_model(family, torch.float32, size={"tie_embeddings": tied})
    assert model.method.embed_scale > 2
    export_folder(model, tmp_path / "hf")
    there, ids = load_there(tmp_path / "hf"), tiny_ids(2, 9)
    assert type(there).__name__ in ("GPTNeoXForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel")
    with torch.no_grad():
        torch.testing.assert_close(there(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
        assert generate_there(there, PROMPTS, 6) == generate(model, PROMPTS, 6)
    torch.testing.assert_close(load_folder(tmp_path / "hf")(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_a_plain_model_outside_its_family_brings_its_own_file(tmp_path):
    model = tiny_model("pythia", torch.float32, size={"norm": "rms", "bias": False})
    export_folder(model, tmp_path / "hf")
    there, ids = load_there(tmp_path / "hf"), tiny_ids()
    assert type(there).__name__ == "LatentptForCausalLM"
    torch.testing.assert_close(there(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_padding_on_either_side_and_several_tokens_at_once_change_nothing(tmp_path):
    model = tiny_model("llama", torch.float32, method="latent", num_thoughts=1)
    export_folder(model, tmp_path / "hf")
    there, ids = load_there(tmp_path / "hf"), tiny_ids(1, 6)
    with torch.no_grad():
        plain = there(ids).logits
        for left, right in [(3, 0), (0, 3), (2, 2)]:
            padded = torch.nn.functional.pad(ids, (left, right))
            mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
            logits = there(padded, attention_mask=mask).logits[:, left : left + 6]
            torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
        first = there(ids[:, :2])
        second = there(ids[:, 2:], past_key_values=first.past_key_values)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), plain, atol=1e-5, rtol=0)
        assert there.generate(ids, num_beams=3, max_new_tokens=4, pad_token_id=0).shape == (1, 10)


def test_large_weights_are_cut_into_shards_that_everybody_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SHARD_BYTES", 4000)
    model, ids = tiny_model("gpt2", torch.float32), tiny_ids()
    export_folder(model, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(load_folder(tmp_path / "hf")(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(load_there(tmp_path / "hf")(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, monkeypatch):
    model = tiny_model("llama", torch.float32)
    export_folder(model, tmp_path / "hf")
    with pytest.raises(ConfigError, match="exists already"):
        export_folder(model, tmp_path / "hf")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(folders, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_folder(model, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("form", ["hf", "stories260K.bin"])
def test_a_trained_model_reproduces_its_reference_here_and_exported(tmp_path, form):
    reference = json.loads(shared("models", "stories260K", "hf", "reference.json").read_text())
    model = load_folder(shared("models", "stories260K", form))
    ids = torch.tensor([reference["ids"]])
    export_folder(model, tmp_path / "hf")
    model, there = model.double(), load_there(tmp_path / "hf").double()
    with torch.no_grad():
        out = model(ids, labels=ids)
        assert abs(out.loss.item() - reference["mean_nll_fp64"]) < 1e-6
        last = torch.tensor(reference["last_logits_first8"]).double()
        torch.testing.assert_close(out.logits[0, -1, :8], last, atol=1e-4, rtol=0)
        torch.testing.assert_close(there(ids).logits, out.logits, atol=1e-5, rtol=0)
    model, there = model.float(), there.float()
    greedy = generate(model, [reference["greedy_prompt_ids"]], 70)[0]
    assert greedy == reference["greedy_70_ids"]
    assert generate_there(there, [reference["greedy_prompt_ids"]], 70) == [greedy]


def test_plain_weights_start_a_latent_model_where_they_ended(tmp_path):
    plain = tiny_model("llama", torch.float32)
    export_folder(plain, tmp_path / "hf")
    thinking = load_folder(tmp_path / "hf", {"method": "latent", "num_thoughts": 1})
    ids = tiny_ids()
    hidden = thinking.think(ids, thinking.method.schedule(slots=1))
    torch.testing.assert_close(thinking.decoder.head(hidden), plain(ids).logits, atol=1e-5, rtol=0)


def test_the_command_writes_weights_tokenizer_and_card(tmp_path, monkeypatch, capsys):
    size = {"vocab_size": BYTES_VOCAB}
    model = tiny_model("pythia", torch.float32, method="latent", num_thoughts=1, size=size)
    run = write_run(tmp_path / "run", model, write_tokenizer(tmp_path / "data"))
    (run / "summary.json").write_text('{"tokens": 1024, "training_flops": 3e9, "validation_loss": 4.25}')
    figures = Figures({"acc": 0.625, "f1": 0.1}, {"acc": 0.1}, 80)
    keep_results(run / "evaluation", [Measurement("piqa", {}, identity(model), 7, figures)])
    out = tmp_path / "hf"
    assert launch("export", monkeypatch, "--run", run, "--output", out) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "| piqa: acc | 0.6250 |" in card and "f1" not in card
    assert "| validation loss, nats a token | 4.2500 |" in card and "thinks 1 latent thought:" in card
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python")[1].split("```")[0].replace("max_new_tokens=50", "max_new_tokens=5"), {})
    assert "Once upon a time" in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "a café"
    assert tokenizer(text)["input_ids"] == load_tokenizer(tmp_path / "data").encode(text)
    there = load_there(out)
    assert there.generation_config.eos_token_id == 256
    assert launch("export", monkeypatch, "--run", run, "--output", out) == 2
    assert "exists already" in capsys.readouterr().err
    (run / "evaluation" / "results.json").unlink()
    keep_results(run / "evaluation", [Measurement("piqa", {}, "of another step", 7, figures)])
    assert launch("export", monkeypatch, "--run", run, "--output", tmp_path / "later") == 0
    assert "piqa" not in (tmp_path / "later" / "README.md").read_text()
