"""Operations of the latent loop, each as a plain formula, by torch's own kernels and by Triton's.

`dispatch` says which of the three runs; LATENTPT_KERNELS=reference|torch|triton overrides it at every call.
"""

from latentpt_kernels.add_norm import add_norm, add_norms
from latentpt_kernels.block_attention import block_attention
from latentpt_kernels.decode import decode_attention, decode_layer, decode_linear, decode_qkv
from latentpt_kernels.latent_shift import latent_shift
from latentpt_kernels.linear_cross_entropy import linear_cross_entropy
from latentpt_kernels.rotate_qk import rotate_qk

__all__ = [
    "add_norm",
    "add_norms",
    "block_attention",
    "decode_attention",
    "decode_layer",
    "decode_linear",
    "decode_qkv",
    "latent_shift",
    "linear_cross_entropy",
    "rotate_qk",
]
