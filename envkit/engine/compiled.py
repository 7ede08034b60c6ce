"""Compiling what a model does between two layers' attention, which stays with the layouts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from envkit.errors import ModelError

#: Beyond its own limit, 8, torch would go on uncompiled and hardly say so.
_MOST_VARIANTS = 256


@contextmanager
def compiled_blocks(model: Any) -> Generator[None]:
    """Have ``torch.compile`` turn what a block does into a few kernels; a first use goes into the ``with``.

    Blocks that are alike share what is compiled. There is code for one row and for several, for one token and
    for several, for each adapter and for rows of several, made when it is first needed.

    Raises:
        ModelError: the model does not say which of its modules are blocks, or they cannot be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException

    names = model._no_split_modules or ()
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise ModelError("torch_compile: this model names no blocks that could be compiled; leave it off")
    for block in blocks:
        block.compile(dynamic=True, recompile_limit=_MOST_VARIANTS)
    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"torch_compile: the model cannot be compiled here ({reason[:200]}); it needs a C++ compiler and "
            "Python's headers"
        ) from error
