"""The recurrence written down plainly: one row, no cache, the whole prefix again for every latent."""

import torch
from torch.nn import functional

from latentpt.finetuning.fills import predicted_embedding
from latentpt.modeling.rotary import rotate


def plain_block(block, x, places):
    """One block over inputs [1, n, d] at positions [n], written with nothing of the executor."""
    attention, qkv = block.attention, block.attention.qkv
    heads = functional.linear(block.attention_norm(x), qkv.weight, qkv.bias).unflatten(-1, (-1, qkv.width))
    parts = heads.split([qkv.heads, qkv.kv_heads, qkv.kv_heads], dim=-2)
    if places is not None:
        parts = [rotate(part[:, :, None], places)[:, :, 0] for part in parts[:2]] + [parts[2]]
    q, k, v = (part.transpose(1, 2) for part in parts)
    k, v = (part.repeat_interleave(qkv.heads // qkv.kv_heads, dim=1) for part in (k, v))
    attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    attended = attention.out(attended)
    if block.parallel:
        return x + attended + block.mlp(block.mlp_norm(x))
    return x + attended + block.mlp(block.mlp_norm(x + attended))


def states(model, embeds, places=None):
    """Last state and every layer's output of inputs [1, n, d] (learned positions included) of a plain model."""
    decoder = model.decoder
    angles = decoder.angles(torch.arange(embeds.shape[1]) if places is None else places)
    seen = [embeds]
    for block in decoder.blocks:
        seen.append(plain_block(block, seen[-1], angles))
    hidden = decoder.norm(seen[-1])
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
        adapted = h if fill.adapter is None else fill.adapter(h)
        if fill.kind == "hidden":
            z = adapted
        elif fill.kind == "soft":
            z = e
        elif fill.kind == "fusion":
            z = fill.alpha * adapted + (1 - fill.alpha) * e
        else:
            z = decoder.embedding.weight[fill.latent_token] * scale if fill.vector is None else fill.vector
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
    return logits, sum(loss.sum() for loss in losses) / max(count, 1)


def generate_one(model, prompt, fill, count, eos):
    """Greedy continuation of one prompt, everything computed again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != eos):
        ids.append(int(model.decoder.head(row_states(model, ids, fill)[-1]).argmax()))
    return ids[len(prompt) :]
