"""The recurrence written down plainly: one row, no cache, the whole prefix again for every latent."""

import torch

from latentpt.finetuning.fills import predicted_embedding


def states(model, embeds):
    """Last state and every layer's output of inputs [1, n, d] (positions 0 .. n - 1 included) of a plain model."""
    decoder = model.decoder
    angles = decoder.angles(torch.arange(embeds.shape[1]))
    x, seen = embeds[:, :, None], [embeds]
    for block in decoder.blocks:
        x, _ = block(x, angles)
        seen.append(x[:, :, 0])
    hidden = decoder.norm(x[:, :, 0])
    return hidden, [*seen[:-1], hidden]


def row_states(model, ids, fill):
    """States [n, d] of one row of ids, latents filled one after another."""
    decoder, scale = model.decoder, model.method.embed_scale
    places = torch.arange(len(ids))
    rows = 0 if decoder.position_embedding is None else decoder.position_embedding(places) * scale
    inputs = decoder.embedding(torch.tensor(ids)) * scale + rows
    for place, token in enumerate(ids):
        if token != fill.latent_token:
            continue
        hidden, layers = states(model, inputs[None, :place])
        h, e = layers[fill.layer][0, -1], None
        if fill.kind in ("soft", "fusion"):
            e = predicted_embedding(
                decoder.head(hidden[0, -1:]), decoder.embedding.weight, fill.top_p, fill.temperature,
                fill.latent_token, fill.inclusive,
            )[0] * scale  # fmt: skip
        z = {
            "hidden": lambda: h,
            "soft": lambda: e,
            "fusion": lambda: fill.alpha * (h if fill.adapter is None else fill.adapter(h)) + (1 - fill.alpha) * e,
            "pause": lambda: decoder.embedding.weight[fill.latent_token] * scale if fill.vector is None else fill.vector,
        }[fill.kind]()  # fmt: skip
        z = z if decoder.position_embedding is None else z + rows[place]
        inputs = torch.cat([inputs[:place], z[None], inputs[place + 1 :]])
    return states(model, inputs[None])[0][0]


def row_by_row(model, rows, labels, fill):
    """Logits of every row and the mean loss over all labels, unshifted, -100 ignored."""
    logits = [model.decoder.head(row_states(model, row, fill)) for row in rows]
    losses = [
        torch.nn.functional.cross_entropy(
            out[:-1], torch.tensor(wanted[1:]), reduction="none", ignore_index=-100
        )
        for out, wanted in zip(logits, labels, strict=True)
    ]
    count = sum(label != -100 for wanted in labels for label in wanted[1:])
    return logits, sum(loss.sum() for loss in losses) / count


def generate_one(model, prompt, fill, count, eos):
    """Greedy continuation of one prompt, everything computed again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != eos):
        ids.append(int(model.decoder.head(row_states(model, ids, fill)[-1]).argmax()))
    return ids[len(prompt) :]
