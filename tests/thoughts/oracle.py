"""The recurrence cell by cell, written down once more and without any of the library's ways to be fast."""

import torch

from latentpt.modeling.rotary import rotate
from latentpt.thoughts.documents import document_positions
from latentpt.thoughts.state import Before


@torch.no_grad()
def oracle(model, ids, slots=None, documents=None, alive=None):
    """h(t, n - 1) after the final norm, [B, L, d], of ids [B, L]; n = `slots`, or for each token `alive` [B, L].

    Where tokens think different numbers of slots, the mixture of their states.
    """
    method, decoder = model.method, model.decoder
    slots = slots or method.slots
    feeds, (start, stop) = method.feeds(slots), method.span
    positions = torch.arange(ids.shape[1]) if documents is None else document_positions(documents)
    tokens = method.tokens(decoder, ids, positions)
    keys = [{} for _ in decoder.blocks]  # layer -> cell -> (k, v) [B, H_kv, D]
    inputs, states, predicted = {}, {}, []
    halting = method.halting if slots > 1 else None
    weights = {}  # cell -> W [B]

    def visible(t, slot, layer):
        for (other, s), kv in keys[layer].items():
            if not method.visibility.sees(slot, s):
                continue
            mask = torch.ones(len(ids), dtype=torch.bool)
            if documents is not None:
                mask &= documents[:, other] == documents[:, t]
            if alive is not None and (other, s) != (t, slot):
                mask &= alive[:, other] > s
            yield kv, mask

    def layers(x, t, slot, first, last, memory):
        tapped = None
        for layer in range(first, last):
            block, injection = decoder.blocks[layer], method.injections and method.injections[layer]
            if layer == method.tap:
                tapped = x
            if injection:
                x = injection.residual(x, memory)
            y = block.attention_norm(x)
            qk, v = block.attention.qkv(y, None)
            q, k = qk.split([block.attention.qkv.heads, block.attention.qkv.kv_heads], dim=-2)
            if injection:
                k, v = injection.keys_values(y, k, v, memory)
            angles = decoder.angles(tokens.at(slice(t, t + 1)).positions)
            if angles is not None:
                q, k = rotate(q, angles), rotate(k, angles)
            keys[layer][t, slot] = k[:, 0, 0], v[:, 0, 0]
            seen = list(visible(t, slot, layer))
            log_weights = torch.zeros(len(ids), 1, len(seen))
            if halting:
                seen_cells = [c for c in keys[layer] if method.visibility.sees(slot, c[1])]
                log_weights = torch.stack([weights[c].log() for c in seen_cells], 1)[:, None]
                if not halting.weighs:
                    log_weights = log_weights.where(log_weights == float("-inf"), 0.0)
            groups = q.shape[-2] // k.shape[-2]
            ks, vs = (torch.stack([kv[i] for kv, _ in seen], 1).repeat_interleave(groups, 2) for i in (0, 1))
            scores = torch.einsum("bhd,bnhd->bhn", q[:, 0, 0], ks) * q.shape[-1] ** -0.5
            mask = torch.stack([mask for _, mask in seen], 1)[:, None]
            p = (scores + log_weights).masked_fill(~mask, float("-inf")).softmax(-1)
            attended = block.attention.out(torch.einsum("bhn,bnhd->bhd", p, vs).flatten(1))[:, None, None]
            if block.parallel:
                x = x + attended + block.mlp(block.mlp_norm(x))
            else:
                x = x + attended
                x = x + block.mlp(block.mlp_norm(x))
        return x, tapped

    def weight_of(t, slot):
        """W [B] of a cell, by the formulas of the papers."""
        if slot == 0:
            return torch.ones(len(ids), dtype=decoder.norm.weight.dtype)
        kind = type(halting).__name__
        if kind == "Reach":
            g = torch.sigmoid(halting.router(states[t, slot - 1])[:, 0, 0, 0] + 2)
            weight = weights[t, slot - 1] * g
        elif kind == "Tail":
            weight = halting.router(states[t, 0]).softmax(-1)[:, 0, 0, slot:].sum(-1)
        else:
            weight = 1 - decoder.head(states[t, 0]).softmax(-1).amax(-1)[:, 0, 0]
        return weight.where(weight >= halting.threshold, 0.0)

    def mixed(t, x):
        """sum_s p(t, s) h(t, s), [B, d]."""
        reached = [weights[t, slot] for slot in range(slots)]
        if type(halting).__name__ == "Confidence":
            reached = [(weight > 0).to(x.dtype) for weight in reached]
        after = [*reached[1:], torch.zeros_like(reached[0])]
        return sum(
            (w - v)[:, None] * decoder.norm(x[:, s])
            for s, (w, v) in enumerate(zip(reached, after, strict=True))
        )

    for t in range(ids.shape[1]):
        here = tokens.at(slice(t, t + 1))
        if start:
            here = here.inside(layers(here.embeds, t, 0, 0, start, None)[0])
        inputs[t, None] = states[t, None] = here.embeds
        streams = []
        for slot in range(slots):
            before = None
            if feeds[slot] is not None:
                cell = t - feeds[slot].back, feeds[slot].slot
                zero = torch.zeros_like(here.embeds)
                known = torch.full_like(zero[..., :1], cell in states, dtype=torch.bool)
                if documents is not None and feeds[slot].back and t:
                    known &= (documents[:, t] == documents[:, t - 1])[:, None, None, None]
                before = Before(inputs.get(cell, zero), states.get(cell, zero) * known, known)
            plain = before is None and slot == 0
            u = here.embeds if plain else method.inject(decoder, here, range(slot, slot + 1), before)
            memory = torch.zeros_like(u) if before is None else before.states
            if halting:
                weights[t, slot] = weight_of(t, slot)
            x, tapped = layers(u, t, slot, start, stop, memory)
            inputs[t, slot] = u
            states[t, slot] = method.update(method.states(decoder, x if tapped is None else tapped), memory)
            streams.append(x)
        if stop < len(decoder.blocks):
            streams[-1] = layers(streams[-1], t, slots - 1, stop, len(decoder.blocks), None)[0]
        x = torch.cat(streams, dim=2)[:, 0]
        if halting:
            predicted.append(mixed(t, x))
            continue
        last = torch.full((len(ids),), slots - 1) if alive is None else (alive[:, t] - 1).clamp(min=0)
        predicted.append(x[torch.arange(len(ids)), last])
    return torch.stack(predicted, dim=1) if halting else decoder.norm(torch.stack(predicted, dim=1))
