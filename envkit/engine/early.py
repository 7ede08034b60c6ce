"""Compute hidden states of a prompt with a base model's first layers only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from envkit.engine.adapters.pool import BASE
from envkit.engine.attention.layouts import PrefillLayout
from envkit.engine.torch_engine import TorchEngine, pieces
from envkit.errors import ModelError

#: Tokens that are read in one forward pass, padding included, unless one prompt has more.
_TOKENS = 1024


@final
class EarlyLayers:
    """The first layers of an engine's base. They share its weights and change nothing of what it samples.

    Args:
        engine: samples from the base.
        layers: how many of its layers are used; 0 is a quarter of them.

    Raises:
        ModelError: the base has fewer layers.
    """

    def __init__(self, engine: TorchEngine, layers: int = 0) -> None:
        self._linears, self._device = engine.linears, engine.device
        decoder: Any = engine.linears.model.get_decoder()
        self.all = len(decoder.layers)
        self.count = layers or max(self.all // 4, 1)
        if not 1 <= self.count <= self.all:
            raise ModelError(f"{layers} layers are asked for, and the base has {self.all}")
        self._first = copy.copy(decoder)
        # A shallow copy shares the table of modules, and these two must not change in the engine's own.
        self._first._modules = {**decoder._modules}
        self._first.layers = decoder.layers[: self.count]
        # Their states are those between two layers, which no norm has seen. Its name differs with the family.
        for name in [name for name in decoder._modules if "norm" in name]:
            self._first._modules[name] = nn.Identity()

    @torch.no_grad()
    def means(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Return each prompt's mean hidden state, shape (prompts, width).

        Every token counts alike: its state is divided by its root mean square first, as a few tokens, such as
        the first, have states hundreds of times as large as others (arXiv:2402.17762).

        Args:
            prompts: token ids, at least one of each.
        """
        found = list[NDArray[np.float64]]()
        for piece in pieces([*map(len, prompts)], _TOKENS):
            some = prompts[piece]
            width = max(map(len, some))
            ids_BS = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in some], device=self._device)
            positions_BS = torch.arange(width, device=self._device).expand(len(some), width)
            self._linears.set_row_adapters([BASE] * len(some))
            states_BSD = self._first(
                input_ids=ids_BS,
                position_ids=positions_BS,
                use_cache=False,
                layout=PrefillLayout(len(some), width),
            ).last_hidden_state.float()
            states_BSD /= states_BSD.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
            for states_SD, ids in zip(states_BSD, some, strict=True):
                found.append(states_SD[: len(ids)].double().mean(dim=0).cpu().numpy())
        return np.stack(found)
