"""All forwards compute the one recurrence: segments == jacobi with enough passes == row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.config import ConfigError
from latentpt.finetuning import Fill, latent_forward
from latentpt.finetuning.fills import Adapter
from latentpt.finetuning.layout import lay_out
from tests.conftest import tiny_model
from tests.finetuning.row_by_row import row_by_row, states

LATENT, VOCAB = 36, 37
FILLS = {
    "hidden": Fill("hidden", LATENT),
    "an earlier layer": Fill("hidden", LATENT, layer=-2),
    "soft": Fill("soft", LATENT, top_p=0.7, temperature=0.8),
    "fusion": Fill("fusion", LATENT, layer=-2, inclusive=False),
    "pause": Fill("pause", LATENT),
}


@st.composite
def batches(draw):
    """Rows of 2 to 9 ids, latents in one block (Coconut) or scattered (LT-Tuning), and padding of both sides."""
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    block = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = torch.randint(LATENT, (draw(st.integers(2, 9)),), generator=generator)
        if block:
            start = draw(st.integers(1, len(row)))
            row[start : start + draw(st.integers(0, 4))] = LATENT
        else:
            row[1:][torch.rand(len(row) - 1, generator=generator) < 0.3] = LATENT
        rows.append(row.tolist())
    left = [draw(st.integers(0, 3)) for _ in rows]
    return rows, left


def padded(rows, left, fill=0):
    """Rows in one rectangle, each with its own padding on the left and the rest on the right; and the mask."""
    width = max(before + len(row) for before, row in zip(left, rows, strict=True)) + 1
    ids = [[fill] * b + row + [fill] * (width - b - len(row)) for b, row in zip(left, rows, strict=True)]
    mask = [
        [0] * b + [1] * len(row) + [0] * (width - b - len(row)) for b, row in zip(left, rows, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def labels_of(rows):
    """Every third token is not supervised."""
    return [[-100 if place % 3 == 0 else token for place, token in enumerate(row)] for row in rows]


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@settings(max_examples=12, deadline=None)
@given(batch=batches(), family=st.sampled_from(["llama", "pythia", "gpt2"]))
def test_segments_equal_jacobi_with_enough_passes_equal_row_by_row(batch, family, fill):
    rows, left = batch
    model = tiny_model(family)
    ids, mask = padded(rows, left)
    labels, _ = padded(labels_of(rows), left, fill=-100)
    logits, loss = row_by_row(model, rows, labels_of(rows), fill)
    for engine in ("segments", "jacobi"):
        out = latent_forward(model, ids, fill, mask, labels=labels, engine=engine)
        for row, (begin, expected) in enumerate(zip(left, logits, strict=True)):
            torch.testing.assert_close(out.logits[row, begin : begin + len(expected)], expected)
        torch.testing.assert_close(out.loss, loss)


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_gradients_of_all_forwards_are_equal(fill, family):
    rows, left = [[3, 5, LATENT, LATENT, 9, 1], [4, LATENT, 6, 2], [7, 8, 9]], [0, 2, 1]
    ids, mask = padded(rows, left)
    labels, _ = padded(rows, left, fill=-100)
    model = tiny_model(family)

    def gradients(loss):
        parameters = dict(model.named_parameters())
        return dict(
            zip(parameters, torch.autograd.grad(loss, parameters.values(), allow_unused=True), strict=True)
        )

    expected = gradients(row_by_row(model, rows, rows, fill)[1])
    for engine in ("segments", "jacobi"):
        found = gradients(latent_forward(model, ids, fill, mask, labels=labels, engine=engine).loss)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_the_adapter_is_applied_to_the_state_and_trained():
    torch.manual_seed(0)
    fill = Fill("fusion", LATENT, adapter=Adapter(16, 5).double())
    model = tiny_model()
    rows = [[3, 5, LATENT, 9, LATENT, 1]]
    out = latent_forward(model, torch.tensor(rows), fill, labels=torch.tensor(rows))
    torch.testing.assert_close(out.logits[0], row_by_row(model, rows, rows, fill)[0][0])
    out.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fill.adapter.parameters())


@pytest.mark.parametrize("engine", ["segments", "jacobi"])
def test_pause_with_its_vector_in_the_table_is_a_plain_forward(engine, family):
    model = tiny_model(family)
    ids = torch.tensor([[3, 5, LATENT, LATENT, 9, 1]])
    fill = Fill("pause", LATENT)
    plain = model(ids, labels=ids)
    out = latent_forward(model, ids, fill, labels=ids, engine=engine)
    torch.testing.assert_close(out.logits, plain.logits)
    torch.testing.assert_close(out.loss, plain.loss)
    own = Fill(
        "pause", LATENT, vector=(model.decoder.embedding.weight[LATENT] * model.method.embed_scale).detach()
    )
    torch.testing.assert_close(latent_forward(model, ids, own).logits, plain.logits)


@pytest.mark.parametrize("engine", ["segments", "jacobi"])
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_without_latents_it_is_ordinary_fine_tuning(fill, engine, family):
    model = tiny_model(family)
    ids = torch.tensor([[3, 5, 2, 9, 1], [1, 2, 3, 4, 5]])
    plain = model(ids, labels=ids)
    out = latent_forward(model, ids, fill, labels=ids, engine=engine)
    torch.testing.assert_close(out.logits, plain.logits)
    torch.testing.assert_close(out.loss, plain.loss)


def test_passes_are_the_most_latents_in_a_row_and_one():
    ids = torch.tensor([[1, LATENT, 2, 3, LATENT, 4], [1, 2, LATENT, LATENT, LATENT, 3], [1, 2, 3, 4, 5, 6]])
    assert len(lay_out(ids, LATENT).segments) == 4
    assert sum(segment.alive.sum() for segment in lay_out(ids, LATENT).segments) == ids.numel()


def test_further_empty_passes_change_nothing(family):
    model = tiny_model(family)
    ids = torch.tensor([[3, 5, LATENT, 9, 1], [1, 2, 3, 4, 5]])
    one = latent_forward(model, ids, FILLS["hidden"], labels=ids)
    more = latent_forward(model, ids, FILLS["hidden"], labels=ids, passes=5)
    torch.testing.assert_close(more.logits, one.logits)
    torch.testing.assert_close(more.loss, one.loss)


def test_fewer_jacobi_passes_than_latents_are_an_approximation():
    model = tiny_model()
    ids = torch.tensor([[3, 5, LATENT, LATENT, LATENT, 9, 1]])
    exact = latent_forward(model, ids, FILLS["hidden"]).logits
    errors = [
        (latent_forward(model, ids, FILLS["hidden"], engine="jacobi", passes=passes).logits - exact)
        .abs()
        .max()
        for passes in range(4)
    ]
    assert errors[0] > 1e-3 and errors[2] > 1e-6 and errors[3] < 1e-9


@pytest.mark.parametrize("kind", ["hidden", "fusion"])
def test_thoughts_inside_positions_and_latents_in_the_sequence_compose(kind, family):
    """A model with two thoughts a token: a latent position reads the last thought before it, then thinks itself."""
    model = tiny_model(family, method="latent", num_thoughts=2, solver="sequential")
    method, decoder = model.method, model.decoder
    fill = Fill(kind, LATENT)
    row = [3, 5, LATENT, 9, LATENT, 1]
    table, z = decoder.embedding.weight, {}
    rows = (
        0
        if decoder.position_embedding is None
        else decoder.position_embedding.weight[:6] * method.embed_scale
    )

    def hidden(length):
        """Every cell in turn, the whole past again for each: [length, d] of the last slots."""
        inputs, last = [], []
        for place in range(length):
            u = z[place] if place in z else table[row[place]] * method.embed_scale
            for _slot in range(3):
                u = u if isinstance(rows, int) else u + rows[place]
                inputs.append(u)
                x = torch.stack(inputs)[None]
                u = states(model, x, torch.arange(len(inputs)) // 3)[0][0, -1]
            last.append(u)
        return torch.stack(last)

    for place in (2, 4):
        state = hidden(place)[-1:]
        z[place] = fill.inputs(decoder, method.embed_scale, state, state)[0]
    for engine in ("segments", "jacobi"):
        out = latent_forward(model, torch.tensor([row]), fill, engine=engine)
        torch.testing.assert_close(out.logits[0], decoder.head(hidden(6)))


def test_a_row_that_begins_with_a_latent_is_refused():
    with pytest.raises(ValueError, match="a latent needs a position before it"):
        latent_forward(tiny_model(), torch.tensor([[LATENT, 1]]), FILLS["hidden"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hiden"}, "the nearest is hidden"),
        ({"kind": "fusion", "alpha": 2.0}, "between 0 and 1"),
        ({"kind": "soft", "top_p": 0.0}, r"\(0, 1\]"),
        ({"kind": "soft", "temperature": 0.0}, "greater than 0"),
    ],
)
def test_fills_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Fill(latent_token=LATENT, **options)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="between -2 and -1"):
        latent_forward(tiny_model(), torch.tensor([[1, LATENT]]), Fill("hidden", LATENT, layer=-7))


def test_only_padding_before_a_position_has_to_be_hidden():
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    plain = lay_out(ids, 9, mask)
    assert plain.padded and not plain.holes
    latents = lay_out(torch.tensor([[1, 2, 9, 4], [1, 9, 3, 4]]), 9)
    assert latents.padded and latents.holes
