"""Routes requests while a server runs: reads the beginning of a prompt in the decoding thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import final

from envkit.engine.early import EarlyLayers
from envkit.serving.decoding.router import Features, Router
from envkit.serving.decoding.torch_decoder import TorchDecoder


@final
class RequestRouter:
    """A router with what it reads prompts with.

    Args:
        router: decides.
        early: the base's first layers; used by the decoding thread only.
        decoder: owns that thread.
        created: time of the router's file, in seconds since 1970.
    """

    def __init__(self, router: Router, early: EarlyLayers, decoder: TorchDecoder, created: int) -> None:
        self._router, self._early, self._decoder = router, early, decoder
        self.created = created

    @property
    def names(self) -> Sequence[str]:
        """Model ids of the specialists."""
        return self._router.names

    async def choose(
        self, prompt: Sequence[int], allowed: Collection[str], with_base: bool
    ) -> tuple[str | None, float]:
        """Choose who answers a prompt, as `Router.choose`; returns it with the seconds of reading.

        Raises:
            DecoderStopped: decoding has ended.
        """

        def read() -> tuple[Features, float]:
            started_s = time.monotonic()
            features_1D = self._early.means([prompt[: self._router.tokens]])
            return features_1D, time.monotonic() - started_s

        features_1D, seconds = await self._decoder.ask(read)
        [chosen] = self._router.choose(features_1D, allowed, with_base=with_base)
        return chosen, seconds
