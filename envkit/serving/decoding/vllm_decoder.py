"""vLLM behind the application: it decodes the rows of all requests together, in a separate process."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, final

from envkit.engine.adapters.updates import Update
from envkit.engine.running import Drawn, Failed, Likely, RowRequest
from envkit.engine.stop_strings import StopStrings
from envkit.engine.vllm.asynchronous import AsyncVLLM
from envkit.engine.vllm.engine import require_rank, write_adapter
from envkit.errors import ContractError, EnvkitError, ModelError
from envkit.runtime.lease import Lease
from envkit.serving.decoding.decoder import DecoderStopped, Event

#: Name of the base's adapter without an effect. No model has such a name.
_BASE = "@base"


@final
class VLLMDecoder:
    """Decodes with vLLM. Implements `envkit.serving.decoding.decoder.Decoder`.

    vLLM makes the random draws, seeded by each row's key. It tells the model's own log-probabilities only, so
    `Drawn.logprob` is not a number.

    Args:
        engine: vLLM's.
        adapters: of the same engine.
        decode: turns ids into text, for stop strings.
    """

    def __init__(
        self, engine: AsyncVLLM, adapters: VLLMAdapters, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._engine, self._adapters, self._decode = engine, adapters, decode
        if engine.base_needs_adapter:
            adapters.register(_BASE, engine.zero_adapter)
        self._count = itertools.count()
        self._error: Exception | None = None
        #: Rows of each adapter that wait or run, and the tasks that draw them.
        self._users: Counter[str | None] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = 0

    @property
    def error(self) -> Exception | None:
        """The error that ended vLLM's process."""
        if self._error is None and self._engine.llm.errored:
            self._error = self._engine.llm.dead_error
        return self._error

    @property
    def waiting(self) -> int:
        """Rows without a token."""
        return self._users.total() - self.running

    @property
    def cache_tokens(self) -> int:
        """Tokens of vLLM's KV cache, which has one size."""
        return self._engine.cache_tokens

    def start(self) -> None:
        """Do nothing: vLLM's process has started."""

    def stop(self) -> None:
        """End vLLM's processes."""
        self._engine.close()
        self._adapters.close()

    def uses(self, adapter: str) -> bool:
        """See `envkit.serving.decoding.decoder.Decoder.uses`."""
        return self._users[adapter] > 0

    async def stream(
        self, requests: Sequence[RowRequest], prepare: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """See `envkit.serving.decoding.decoder.Decoder.stream`."""
        if self.error is not None:
            raise DecoderStopped("vLLM's process has ended")
        queue = asyncio.Queue[Event]()
        prepare()
        tasks = [self._start(index, request, queue) for index, request in enumerate(requests)]
        left = len(tasks)
        try:
            while left:
                index, event = await queue.get()
                left -= isinstance(event, Failed) or event.stop is not None
                yield index, event
        finally:
            for task in tasks:
                task.cancel()

    def _start(self, index: int, request: RowRequest, queue: asyncio.Queue[Event]) -> asyncio.Task[None]:
        """Start a task that draws one row.

        The request's own task is cancelled when its client leaves, and could await nothing more then.
        """
        self._users[request.adapter] += 1
        task = asyncio.create_task(self._row(index, request, queue))

        def leave(task: asyncio.Task[None]) -> None:
            self._users[request.adapter] -= 1
            self._tasks.discard(task)

        self._tasks.add(task)
        task.add_done_callback(leave)
        return task

    async def _row(self, index: int, request: RowRequest, queue: asyncio.Queue[Event]) -> None:
        """Draw one row; its error is its last event."""
        started = False
        try:
            async with aclosing(self._draw(request)) as drawn:
                async for token in drawn:
                    self.running += not started
                    started = True
                    queue.put_nowait((index, token))
        except EnvkitError as error:
            queue.put_nowait((index, Failed(-1, error)))
        except self._engine.died as error:
            self._error = error
            queue.put_nowait((index, Failed(-1, DecoderStopped("vLLM's process has ended"))))
        except Exception as error:  # vLLM refuses this row; the others go on
            queue.put_nowait((index, Failed(-1, ContractError(f"vLLM cannot draw a row: {error!r}"))))
        finally:
            self.running -= started

    async def _draw(self, request: RowRequest) -> AsyncGenerator[Drawn]:
        sampling, top, name = request.sampling, request.top_logprobs, request.adapter
        if name is None and self._engine.base_needs_adapter:
            name = _BASE
        adapter = None if name is None else await self._adapters.request(name)
        settings = self._engine.settings(sampling, request.rng_key, top)
        # Rows of different owners share no KV state, as in `RowRequest`.
        prompt = {"prompt_token_ids": list(request.prompt_ids), "cache_salt": request.owner or "nobody"}
        strings, ids = StopStrings(sampling.stop_strings, self._decode), list[int]()
        number = next(self._count)
        outputs = self._engine.llm.generate(prompt, settings, f"row-{number}", lora_request=adapter)
        async with aclosing(outputs):
            async for output in outputs:
                piece = output.outputs[0]
                if output.finished and piece.finish_reason not in ("stop", "length"):
                    break
                for at, token in enumerate(piece.token_ids):
                    ids.append(token)
                    is_end = token in self._engine.stop_ids or strings.end(ids)
                    is_last = output.finished and at == len(piece.token_ids) - 1
                    stop = "stop" if is_end else "length" if is_last else None
                    likely = None if top is None else _likely(piece.logprobs[at], token, top)
                    yield Drawn(number, token, math.nan, stop, likely, _waited_s(output.metrics))
                    if stop:
                        return
        raise DecoderStopped("vLLM has cut an answer off, as it was told to end")


@final
class VLLMAdapters:
    """Adapters that vLLM reads when they are first used. Implements `Adapters` of the decoder's protocol.

    An adapter's files are checked and copied first: vLLM may read them again at any time, and its process
    ends if they are damaged then.

    Args:
        engine: vLLM's.
    """

    #: vLLM does not tell.
    evictions = None

    def __init__(self, engine: AsyncVLLM) -> None:
        self._engine = engine
        self._readers: dict[str, Callable[[], Mapping[str, Update]]] = {}
        #: vLLM's request object of each adapter that a row has asked for.
        self._made: dict[str, asyncio.Task[Any]] = {}
        self._numbers = itertools.count(1)  # vLLM knows adapters by number
        self._lease = Lease(Path(tempfile.gettempdir()))
        self._leaving: set[asyncio.Task[None]] = set()
        self.loads = 0

    @property
    def used_bytes(self) -> int:
        """Memory of adapters."""
        return self._engine.adapter_bytes

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters that vLLM knows."""
        return tuple(self._made)

    def register(self, name: str, read: Callable[[], Mapping[str, Update]]) -> None:
        """See `envkit.serving.decoding.decoder.Adapters.register`."""
        self._readers[name] = read

    def unregister(self, name: str) -> None:
        """Offer an adapter no longer; no row may use it."""
        del self._readers[name]
        if made := self._made.pop(name, None):
            leaving = asyncio.create_task(self._forget(made))
            self._leaving.add(leaving)  # the loop itself holds tasks weakly
            leaving.add_done_callback(self._leaving.discard)

    async def request(self, name: str) -> Any:
        """Return vLLM's request object of an adapter, which vLLM has loaded.

        Raises:
            ModelError: it cannot be read, does not fit the model, or has too large a rank.
        """
        if (task := self._made.get(name)) is None:
            task = self._made[name] = asyncio.create_task(self._make(name))
            # If all rows that wait for it leave, nobody else looks at its error.
            task.add_done_callback(lambda made: made.cancelled() or made.exception())
        try:
            return await asyncio.shield(task)  # other rows may wait for it
        except Exception:
            if self._made.get(name) is task:
                del self._made[name]  # the next row tries again
            raise

    def close(self) -> None:
        """Remove all copies."""
        self._lease.close()

    async def _make(self, name: str) -> Any:
        number, read = next(self._numbers), self._readers[name]
        path = self._lease.path / str(number)

        def copy() -> None:
            updates = read()
            self._require_fit(updates)
            write_adapter(updates, path)

        try:
            await asyncio.to_thread(copy)
            request = self._engine.lora_request(f"adapter-{number}", number, str(path))
            await self._engine.llm.add_lora(request)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self.loads += 1
        return request

    def _require_fit(self, updates: Mapping[str, Update]) -> None:
        """Refuse an adapter of another model.

        Raises:
            ModelError: it changes a layer that is missing or has another shape, or its rank is too high.
        """
        for path, update in updates.items():
            shape = (len(update.up), update.down.shape[1])
            if (expected := self._engine.shapes.get(path)) != shape:
                raise ModelError(f"an adapter of shape {shape} changes {path}, which has shape {expected}")
        require_rank(updates, self._engine.max_rank)

    async def _forget(self, made: asyncio.Task[Any]) -> None:
        with suppress(Exception):  # it was never made, vLLM has evicted it, or vLLM has ended
            request = await made
            shutil.rmtree(request.lora_path, ignore_errors=True)
            await self._engine.llm.remove_lora(request.lora_int_id)


def _likely(by_token: Mapping[int, Any], token: int, count: int) -> Likely:
    ranked = sorted(by_token.items(), key=lambda item: (-item[1].logprob, item[0]))[:count]
    return Likely(by_token[token].logprob, tuple((other, found.logprob) for other, found in ranked))


def _waited_s(metrics: Any) -> float:
    """Seconds in vLLM's queue."""
    return max(float(metrics.scheduled_ts - metrics.queued_ts), 0.0) if metrics is not None else 0.0
