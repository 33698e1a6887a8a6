"""The step whose length lies on the device: equal to the step that slices, and the same step at every position."""

import gc
import weakref

import pytest
import torch

from latentpt.generation import decode
from latentpt.generation.decode import Session, generate
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling
from latentpt.generation.static import why_not_static
from latentpt.modeling import decoder
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Visibility
from latentpt.thoughts.registry import METHODS
from tests.conftest import tiny_ids, tiny_model
from tests.generation.tape import Recorded, Tape
from tests.thoughts.toys import TOYS


def toy_model(name, monkeypatch, family="llama"):
    monkeypatch.setitem(METHODS, name, TOYS[name])
    return tiny_model(family, size={"num_layers": 4}, method=name, num_thoughts=1)


def states(model, ids, read, static, monkeypatch, setting):
    """States of the positions after the first `read`, decoded token by token."""
    monkeypatch.setenv("LATENTPT_KERNELS", setting)
    session = Session(model, *ids.shape, static=static)
    if read:
        session.extend(ids[:, :read])
    found = [session.step(column) for column in ids[:, read:].unbind(1)]
    assert session.position == ids.shape[1]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("read, setting", [(0, "torch"), (3, "reference")])
def test_the_static_step_equals_the_step_that_slices(model, read, setting, monkeypatch):
    if why_not_static(model) is not None:
        assert model.method.halting is not None  # the next test has those
        return
    ids = tiny_ids(2, 7)
    expected = states(model, ids, read, False, monkeypatch, "")
    found = states(model, ids, read, True, monkeypatch, setting)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def test_a_thinking_layer_is_one_call_of_the_kernels_unless_something_reaches_into_it(family, monkeypatch):
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    calls, ours = [], decoder.decode_layer
    monkeypatch.setattr(decoder, "decode_layer", lambda *args: calls.append(1) or ours(*args))
    model = tiny_model(family, method="latent", num_thoughts=2)
    Session(model, 1, 1, static=True).step(torch.tensor([5]))
    assert len(calls) == 3 * model.config.num_layers
    inside = toy_model("inside", monkeypatch, family)
    Session(inside, 1, 1, static=True).step(torch.tensor([5]))
    assert len(calls) == 3 * model.config.num_layers


@pytest.mark.parametrize("read", [1, 3])
@pytest.mark.parametrize("toy", TOYS)
def test_it_does_so_for_carried_states_spans_of_layers_taps_and_injections(toy, read, monkeypatch):
    model, ids = toy_model(toy, monkeypatch), tiny_ids(2, 7)
    expected = states(model, ids, read, False, monkeypatch, "")
    torch.testing.assert_close(states(model, ids, read, True, monkeypatch, "torch"), expected)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.8, top_k=9, top_p=0.9, seed=3),
        Sampling(temperature=1.3, repetition_penalty=1.5),
    ],
)
def test_a_recorded_step_writes_the_texts_of_the_present_path(model, sampling, monkeypatch):
    """One recording serves every position of a ragged batch, choice and penalty included."""
    prompts = [tiny_ids(1, n, seed=n)[0].tolist() for n in (3, 1, 6)]
    monkeypatch.delenv("LATENTPT_KERNELS", raising=False)
    expected = generate(model, prompts, 6, sampling)
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    monkeypatch.setattr(decode, "Captured", Recorded)
    monkeypatch.setattr(Recorded, "made", ())
    if why_not_static(model) is not None:
        with pytest.warns(UserWarning, match="not recorded .* tokens think different numbers of slots"):
            assert generate(model, prompts, 6, sampling) == expected
        assert not Recorded.made
        return
    assert generate(model, prompts, 6, sampling) == expected
    (recorded,) = Recorded.made
    assert recorded.replays >= 5


@pytest.mark.parametrize("toy", TOYS)
def test_toys_are_recorded_too(toy, monkeypatch):
    model, prompts = toy_model(toy, monkeypatch), [[1, 2, 3], [4]]
    expected = generate(model, prompts, 8)
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    monkeypatch.setattr(decode, "Captured", Recorded)
    assert generate(model, prompts, 8) == expected


def test_a_stop_id_and_a_listener_end_a_recorded_text():
    model = tiny_model(method="latent", num_thoughts=1)
    free = generate(model, [[1, 2, 3]], 8)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTPT_KERNELS", "torch")
        patch.setattr(decode, "Captured", Recorded)
        assert generate(model, [[1, 2, 3]], 8, stop_ids=[free[5]])[0] == free[: free.index(free[5]) + 1]
        heard = []
        assert generate(model, [[1, 2, 3]], 8, on_token=lambda _, t: heard.append(t) or len(heard) == 4)
        assert heard == free[:4]


def test_a_text_leaves_no_cache_behind(monkeypatch):
    """Memory of a device does not wait for a garbage collection."""
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    caches, make = [], LanguageModel.cache
    monkeypatch.setattr(
        LanguageModel, "cache", lambda *args: (cache := make(*args), caches.append(weakref.ref(cache)))[0]
    )
    model = tiny_model(method="latent", num_thoughts=1)
    gc.disable()
    try:
        generate(model, [[1, 2, 3], [4]], 5)
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()


def test_an_approximate_prefill_is_read_in_parallel_and_decoding_goes_on_from_it(monkeypatch):
    model, prompt = tiny_model(method="latent", num_thoughts=2), tiny_ids(1, 9)[0].tolist()
    prefill = Prefill("gauss_seidel", max_sweeps=2)
    expected = generate(model, [prompt], 6, prefill=prefill)
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    monkeypatch.setattr(decode, "Captured", Recorded)
    assert generate(model, [prompt], 6, prefill=prefill) == expected


def test_a_step_that_asks_the_device_is_not_recorded():
    with pytest.raises(AssertionError, match="cannot be recorded"), Tape():
        torch.ones(2).sum().item()


def test_a_visibility_with_gaps_is_decoded_by_slices_and_the_warning_says_why(monkeypatch):
    model = tiny_model(method="latent", num_thoughts=2)
    monkeypatch.setattr(Visibility, "sees", lambda self, slot, other: other != 1)
    assert why_not_static(model) == "slot 0 sees the slots [0, 2], which do not lie side by side"
    monkeypatch.setenv("LATENTPT_KERNELS", "torch")
    with pytest.warns(UserWarning, match="not recorded as a CUDA graph.*do not lie side by side"):
        assert not decode.is_static(model)


def test_bfloat16_models_decode_the_same_words_by_both_steps(monkeypatch):
    config = ModelConfig(
        family="pythia", vocab_size=37, hidden_size=32, num_layers=2, num_heads=4, max_positions=32
    )
    model = LanguageModel(config, ThoughtsConfig(method="latent", num_thoughts=1))
    model.initialize(0)
    model, ids = model.bfloat16(), tiny_ids(2, 6)
    low = [states(model, ids, 2, static, monkeypatch, "torch") for static in (False, True)]
    exact = states(model.double(), ids, 2, False, monkeypatch, "")
    errors = [(x.double() - exact).abs().max() for x in low]
    assert errors[1] <= 2 * errors[0]


def test_a_learned_table_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Session(tiny_model("gpt2"), 1, 65, static=True)
