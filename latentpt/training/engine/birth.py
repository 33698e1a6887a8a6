"""Parameters that come into being where they live: a rank never holds a whole model of stage 3.

The model is built on the meta device, where it has shapes alone. Unit by unit (a block; at last all outside of blocks)
its parameters are made, given their first values and divided among the ranks. Their values are functions of seed and name,
so the model is the one that every other stage begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
from torch import nn


def bear(
    units: Sequence[nn.Module],
    fill: Callable[[nn.Module], None],
    config: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Make the parameters of the units, in order, that are on the meta device; `fill` gives a unit's their values."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # some have several names
    for unit in units:
        for module in unit.modules():
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if parameter.is_meta:
                    if parameter not in made:
                        made[parameter] = nn.Parameter(torch.empty(parameter.shape, device=device))
                    setattr(module, name, made[parameter])
        fill(unit)
        for parameter in unit.parameters():
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(dtype)
        deepspeed.zero.Init(module=unit, config_dict_or_path=config, dtype=dtype)
