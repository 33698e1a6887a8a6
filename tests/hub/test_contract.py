"""from_hf and to_hf against transformers itself: random small models of each architecture, both ways."""

import pytest
import torch
import transformers

from latentpt.config import ConfigError
from latentpt.hub import from_hf, to_hf
from tests.conftest import tiny_ids, tiny_model

SIZE = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "neox": lambda: transformers.GPTNeoXConfig(**SIZE, intermediate_size=48, rotary_pct=0.5),
    "neox-sequential": lambda: transformers.GPTNeoXConfig(
        **SIZE, intermediate_size=64, use_parallel_residual=False, hidden_act="gelu_new"
    ),
    "llama-grouped": lambda: transformers.LlamaConfig(
        **SIZE, num_key_value_heads=2, intermediate_size=40, rms_norm_eps=1e-5
    ),
    "llama-tied-wide-heads": lambda: transformers.LlamaConfig(
        **SIZE, head_dim=12, intermediate_size=40, tie_word_embeddings=True
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=53, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt2-untied": lambda: transformers.GPT2Config(
        vocab_size=53, n_embd=32, n_layer=2, n_head=4, n_inner=48, tie_word_embeddings=False
    ),
}


def stock(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases and norms are not left at 0 and 1
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_imported_weights_give_the_logits_of_transformers(name):
    theirs, ids = stock(name), tiny_ids(2, 9, vocab=53)
    model = from_hf(theirs.config.to_dict(), theirs.state_dict())
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)


def as_in_files(state):
    """transformers 5 renames GPT-NeoX's head when it reads and writes."""
    names = {"lm_head.weight": "embed_out.weight"} if "gpt_neox.embed_in.weight" in state else {}
    return {names.get(key, key): tensor for key, tensor in state.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_goes_in_comes_out(name):
    theirs = stock(name)
    state = as_in_files(theirs.state_dict())
    config, again = to_hf(from_hf(theirs.config.to_dict(), state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in again)
    ids = tiny_ids(2, 9, vocab=53)
    kind = type(theirs.config)
    rebuilt = type(theirs)(kind(**{k: v for k, v in config.items() if k != "latentpt"})).eval()
    back = {name: again[key] for key, name in zip(state, theirs.state_dict(), strict=True)}
    rebuilt.load_state_dict(back)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)


def test_how_a_model_thinks_comes_back_with_its_weights(family):
    model = tiny_model(family, method="latent", num_thoughts=2, refinements=(1, 4), visibility="stage_causal")
    again = from_hf(*to_hf(model))
    assert again.config == model.config.model_copy(
        update={name: getattr(again.config, name) for name in ("head_size", "num_kv_heads")}
    )
    assert again.thoughts.refinements == (1, 4) and again.thoughts.visibility == "stage_causal"
    ids = tiny_ids()
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_loss_is_that_of_transformers():
    theirs, ids = stock("llama-grouped"), tiny_ids(3, 8, vocab=53)
    model = from_hf(theirs.config.to_dict(), theirs.state_dict())
    labels = ids.masked_fill(ids % 5 == 0, -100)
    with torch.no_grad():
        out = model(ids, labels=labels, return_logits=False)
        assert out.logits is None
        torch.testing.assert_close(out.loss, theirs(ids, labels=labels).loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "lama"}, "model_type = lama is not supported; the nearest supported one is llama"),
        ({"attention_bias": True}, "tensor model.layers.0.self_attn.o_proj.bias is missing"),
        ({"rope_scaling": {"factor": 2.0}}, "factor of rope_type = default is not supported; it has no keys"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type = longrope is not supported"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "finetuned": True}},
            "finetuned of rope_type = yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "the llama configuration has no low_freq_factor",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "values of its own for full_attention",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported for llama"),
        (
            {"rope_interleaved": True},
            "rope_interleaved = True is not supported; the supported value is False",
        ),
        ({"quantization_config": {"bits": 4}}, "the key quantization_config = {'bits': 4} is not understood"),
        ({"attention_multiplier": 0.5}, "the key attention_multiplier = 0.5 is not understood"),
        (
            {"add_cross_attention": True},
            "add_cross_attention = True is not supported; the supported value is False",
        ),
        ({"hidden_act": "relu"}, "hidden_act = relu is not supported for llama"),
        ({"num_attention_heads": 5}, "model.num_kv_heads = 2 does not divide model.num_heads = 5"),
        (
            {"intermediate_size": 41},
            "mlp.down_proj.weight has shape (32, 40), the configuration asks for (32, 41)",
        ),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "tensor model.layers.1"),
        ({"vocab_size": 10**9}, "tensor model.embed_tokens.weight has shape (53, 32)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(change, said):
    theirs = stock("llama-grouped")
    with pytest.raises(ConfigError) as error:
        from_hf({**theirs.config.to_dict(), **change}, theirs.state_dict())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_are_no_weights():
    theirs = stock("gpt2")
    state = {**theirs.state_dict(), "transformer.ln_f.bias": torch.zeros(32, dtype=torch.int64)}
    with pytest.raises(ConfigError, match=r"transformer.ln_f.bias has dtype torch.int64"):
        from_hf(theirs.config.to_dict(), state)


def test_a_model_outside_its_family_cannot_be_said_in_its_words():
    with pytest.raises(ConfigError, match="norm = rms cannot be said in gpt_neox, which has layer"):
        to_hf(tiny_model("pythia", size={"norm": "rms"}))
