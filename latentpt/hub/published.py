"""The configuration keys of the published PonderLM-2 code (LUMIA-Group/PonderLM-2) in our words.

Its checkpoints have the architecture's own parameter names; how they think stands in additional keys:

    recurrent_model            whether it thinks at all          scale_embeds              embeddings are scaled
    num_latent_thoughts        N                                 interpolation             mixtures fill the slots
    num_jacobi_iterations      K                                 interpolation_use_topk    .. of the likeliest rows
    random_jacobi_iterations   K is drawn in training            interpolation_topk        .. of so many (100)

The method was chosen by a command line flag (patch_method) and is not among them: `ours`, the latent thoughts, is
taken unless the configuration was given that key by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentpt.config import ConfigError, nearest

_KEYS = (
    "recurrent_model",
    "num_latent_thoughts",
    "num_jacobi_iterations",
    "scale_embeds",
    "interpolation",
    "patch_method",
)
KEYS = (
    *_KEYS,
    "random_jacobi_iterations",
    "interpolation_use_topk",
    "interpolation_topk",
    "residual_interpolated_embeds",
    "pause_token_id",
)
"""All keys that are understood here."""
_METHODS = {"ours": "latent", "ponderlm": "ponder", "loop": "loop", "pause": "pause", "vanilla": "vanilla"}


def published_thoughts(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields of ThoughtsConfig that such a configuration asks for; None when it has none of the keys."""
    if not any(key in config for key in _KEYS):
        return None
    patch = str(config.get("patch_method", "ours"))
    if patch not in _METHODS:
        raise ConfigError(f"patch_method = {patch} is unknown; the nearest is {nearest(patch, _METHODS)}")
    neox = config.get("model_type") == "gpt_neox"
    method, thoughts = _METHODS[patch], int(config.get("num_latent_thoughts", 0))
    # The pause files and GPT-NeoX's latent file think without looking at recurrent_model.
    thinks = method == "pause" or config.get("recurrent_model", neox and method == "latent")
    if method == "vanilla" or not thoughts or not thinks:
        return {"method": "vanilla"}
    if method == "ponder" and neox:
        return {"method": "ponder_hidden", "num_thoughts": thoughts}  # what that file computes under the name
    fields: dict[str, Any] = {"num_thoughts": thoughts}
    if method == "latent":
        most = int(config.get("num_jacobi_iterations", 3))
        fields["refinements"] = (min(2, most), most) if config.get("random_jacobi_iterations") else most
        if config.get("interpolation"):
            method = "latent_mixture"
            if config.get("interpolation_use_topk"):
                fields["top_k"] = int(config.get("interpolation_topk", 100))
    if method == "ponder":
        fields["cumulative"] = bool(config.get("residual_interpolated_embeds", False))
    # The loop files and LLaMA's pause file scale without looking at scale_embeds.
    scales = method == "loop" or (method == "pause" and not neox) or config.get("scale_embeds", False)
    return {"method": method, **fields, **({} if scales else {"embed_scale": 1.0})}
