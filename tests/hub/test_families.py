"""Every family as transformers computes it: random small models of random configurations, in and out."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.config import ConfigError
from latentpt.hub import from_hf, to_hf
from latentpt.hub.convert import read_configs
from latentpt.hub.folders import export_folder, load_folder
from latentpt.hub.layouts import MODEL_TYPES
from latentpt.hub.llamas import LAYOUTS as LLAMAS
from latentpt.hub.recurrence import EXPORTED
from tests.conftest import thinking, tiny_ids, tiny_model

LONGEST = 16  # positions of the models here; texts are longer
ROPES = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
    },
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 8},
    "yarn-tuned": {
        "factor": 4.0, "original_max_position_embeddings": 12, "beta_fast": 2.0, "beta_slow": 0.5, "truncate": False,
        "mscale": 1.0, "mscale_all_dim": 0.5,
    },
    "yarn-factor": {"factor": 2.0, "original_max_position_embeddings": 8, "attention_factor": 1.3},
}  # fmt: skip


def stock(kind, **fields):
    """A random model of transformers in float64, none of whose parameters is left at 0 or 1."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@st.composite
def configurations(draw):
    kind = draw(st.sampled_from(["gpt_neox", *LLAMAS]))
    rope = draw(st.sampled_from(list(ROPES)))
    parameters = {"rope_type": rope.split("-")[0], "rope_theta": draw(st.sampled_from([100.0, 1e4, 5e5]))}
    fields = {
        "vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": LONGEST, "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": {**parameters, **ROPES[rope]}, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "gpt_neox":
        share = draw(st.sampled_from([1.0, 0.5] if rope != "dynamic" else [1.0]))
        fields["rope_parameters"]["partial_rotary_factor"] = share
        return kind, fields | {
            "attention_bias": draw(st.booleans()),
            "use_parallel_residual": draw(st.booleans()),
        }
    fields |= {
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
    }
    if kind != "olmo2":
        fields["head_dim"] = draw(st.sampled_from([4, 6]))
    if kind not in ("mistral", "qwen2"):
        fields["attention_bias"] = draw(st.booleans())
    if kind == "llama":
        fields["mlp_bias"] = draw(st.booleans())
    if kind == "mistral":
        fields["sliding_window"] = draw(st.sampled_from([None, LONGEST]))
    if kind in ("qwen2", "qwen3"):
        fields |= {
            "use_sliding_window": draw(st.booleans()),
            "sliding_window": LONGEST,
            "max_window_layers": 1,
        }
    if kind == "gemma2":
        fields |= {
            "attn_logit_softcapping": None, "sliding_window": 64, "query_pre_attn_scalar": fields["head_dim"],
            "final_logit_softcapping": draw(st.sampled_from([None, 5.0])),
        }  # fmt: skip
    return kind, fields


def windowed(fields):
    return fields.get("sliding_window") == LONGEST and fields.get("use_sliding_window", True)


@given(configurations())
@settings(max_examples=60, deadline=None)
def test_every_configuration_gives_the_logits_of_transformers_and_comes_back_to_the_digit(drawn):
    kind, fields = drawn
    theirs = stock(kind, **fields)
    length = LONGEST if windowed(fields) else 2 * LONGEST - 3  # beyond what the model was made for
    ids = tiny_ids(2, length)
    config = theirs.config.to_dict()
    model = from_hf(config, theirs.state_dict())
    assert model.config.max_positions == LONGEST
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=3e-5, rtol=1e-5)
    written, state = to_hf(model)
    again = from_hf(written, state)
    derived = {"head_size": model.config.head_width, "num_kv_heads": again.config.num_kv_heads}
    assert again.config.model_copy(update=derived) == model.config.model_copy(update=derived)
    names = {"lm_head.weight": "embed_out.weight"} if kind == "gpt_neox" else {}
    assert all(torch.equal(state[names.get(k, k)], tensor) for k, tensor in theirs.state_dict().items())
    rebuilt = transformers.AutoModelForCausalLM.from_config(
        type(theirs.config)(**{k: v for k, v in written.items() if k != "latentpt"}), attn_implementation="eager"
    ).eval().double()  # fmt: skip
    rebuilt.load_state_dict({k: state[names.get(k, k)] for k in theirs.state_dict()})
    with torch.no_grad():
        assert torch.equal(rebuilt(ids).logits, expected)


@pytest.mark.parametrize("kind", [name for name in ROPES if name != "default"])
def test_both_forms_of_rope_scaling_are_read(kind):
    base = transformers.LlamaConfig(vocab_size=37, hidden_size=16, num_hidden_layers=1, num_attention_heads=4)
    config = {**base.to_dict(), "rope_parameters": None}
    newer = {"rope_type": kind.split("-")[0], **ROPES[kind], "rope_theta": 500.0}
    older = {"type": kind.split("-")[0], **ROPES[kind]}
    one, _ = read_configs({**config, "rope_parameters": newer})
    two, _ = read_configs({**config, "rope_scaling": older, "rope_theta": 500.0})
    assert one == two and one.rope_scaling.kind == kind.split("-")[0] and one.rope_theta == 500.0
    with pytest.raises(ConfigError, match="they must agree"):
        read_configs({**config, "rope_parameters": {**newer, "factor": 9.0}, "rope_scaling": older})


def test_keys_turned_by_a_length_are_not_kept_for_another():
    theirs = stock(
        "llama", vocab_size=37, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=LONGEST, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )  # fmt: skip
    model = from_hf(theirs.config.to_dict(), theirs.state_dict())
    model.cache(1, LONGEST)
    with pytest.raises(
        ValueError, match="17 tokens cannot be read piece by piece under dynamic rope scaling"
    ):
        model.cache(1, LONGEST + 1)
    with pytest.raises(ValueError, match="cannot be read piece by piece"):
        model(tiny_ids(1, LONGEST + 1), schedule=replace(model.method.schedule(), chunk=4))


@pytest.mark.parametrize(
    "kind, change, said",
    [
        ("mistral", {"sliding_window": 8}, "sliding_window = 8 is shorter than max_position_embeddings = 16"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_window = 8 is shorter"),
        ("gemma2", {"sliding_window": 8, "attn_logit_softcapping": None}, "sliding_window = 8 is shorter"),
        ("gemma2", {"sliding_window": 16}, "attn_logit_softcapping = 50.0 is not supported; the supported value is null"),
        (
            "gemma2", {"sliding_window": 16, "attn_logit_softcapping": None, "query_pre_attn_scalar": 9},
            "query_pre_attn_scalar = 9 is not supported; the supported value is 256",
        ),
        ("gemma", {"hidden_act": "relu"}, "hidden_act = relu is not supported for gemma"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_have_is_refused_in_one_sentence(kind, change, said):
    config = transformers.AutoConfig.for_model(
        kind, num_hidden_layers=1, max_position_embeddings=LONGEST, **change
    )
    with pytest.raises(ConfigError) as error:
        read_configs(config.to_dict())
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "prefix, kind, fields",
    [
        ("transformer.", "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 4}),
        ("gpt_neox.", "gpt_neox", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
          "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}}),
        ("model.", "llama", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_names_without_the_prefix_of_the_trunk_are_read(prefix, kind, fields):
    theirs = stock(kind, vocab_size=37, **fields)
    state = {name.removeprefix(prefix): tensor for name, tensor in theirs.state_dict().items()}
    if fields.get("tie_word_embeddings", kind == "gpt2"):
        del state["lm_head.weight"]  # the hub's GPT-2 has none
    state["h.0.attn.bias" if kind == "gpt2" else "rotary_emb.inv_freq"] = torch.ones(1)
    ids = tiny_ids()
    with torch.no_grad():
        logits = from_hf(theirs.config.to_dict(), state)(ids).logits
        torch.testing.assert_close(logits, theirs(ids).logits, atol=1e-6, rtol=1e-6)


@given(
    st.sampled_from(list(MODEL_TYPES)),
    st.sampled_from(["vanilla", *EXPORTED]),
    st.integers(1, 3),
    st.booleans(),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_every_family_and_method_comes_back_to_the_digit(family, method, count, tied, data):
    thoughts = {"method": method}
    if method != "vanilla":
        thoughts |= {
            **thinking(method, count), "refinements": data.draw(st.integers(0, 2)),
            "visibility": data.draw(st.sampled_from(["causal", "stage_causal"])),
        }  # fmt: skip
    model = tiny_model(family, torch.float32, size={"tie_embeddings": tied}, **thoughts)
    ids = tiny_ids(2, 5)
    with torch.no_grad():
        logits = model(ids).logits
        again = from_hf(*to_hf(model))
        assert torch.equal(again(ids).logits, logits)
        with tempfile.TemporaryDirectory() as folder:
            export_folder(model, Path(folder) / "hf")
            read = load_folder(Path(folder) / "hf")
    if method == "vanilla":  # the scale is folded into the tables
        torch.testing.assert_close(read(ids).logits, logits, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(read(ids).logits, logits)
        assert read.config == model.config and read.thoughts == model.thoughts
