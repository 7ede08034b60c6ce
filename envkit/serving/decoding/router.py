"""A router: which specialist answers a prompt, or the base if it resembles none of their tasks.

A prompt is the mean hidden state of its first tokens after the base's first layers
(`envkit.engine.early.EarlyLayers`). The specialist is the one whose train prompts have the nearest mean, by
Mahalanobis distance with one covariance for all, as in a linear discriminant. A specialist does not answer a
prompt that is farther from it than nearly all of its own (Lee et al., arXiv:1807.03888) and than half the way
to the next specialist; if none does, the base answers. Half the way, because prompts about a database or a
place that was not trained on lie farther out than all that were, and yet much nearer than another task's.

Shapes: N prompts, D width of the hidden state, K specialists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from envkit.errors import ModelError, UsageError
from envkit.runtime.store import write_atomic

Features: TypeAlias = NDArray[np.float64]

#: The model id that a router answers to.
AUTO: Final = "auto"
#: Share of a specialist's own prompts that may go to the base.
MISSED: Final = 0.05
#: Fewest prompts of a specialist that set its limit: with fewer, no distance is exceeded by `MISSED` of them.
FEWEST_TO_LIMIT: Final = math.ceil(1 / MISSED) - 1
_VERSION: Final = "1"
_HEADER: Final = ("base_digest", "dtype", "layers", "names", "tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """Which specialist answers a prompt.

    Args:
        names: model ids of the specialists.
        means_KD: mean of each specialist's train prompts, whitened.
        whitening_DD: matrix that whitens: afterwards, the covariance of each specialist's prompts is one.
        limits_K: largest distance of a prompt that a specialist answers.
        layers: of the base that the prompts were read with.
        tokens: a prompt's first tokens that count.
        base_digest: of the base's weights.
        dtype: of the base, when the prompts were read.
    """

    names: tuple[str, ...]
    means_KD: Features
    whitening_DD: Features
    limits_K: Features
    layers: int
    tokens: int
    base_digest: str
    dtype: str = ""

    def distances(self, features_ND: Features) -> Features:
        """Distance of each prompt from each specialist's mean, shape (N, K)."""
        white_ND = features_ND @ self.whitening_DD
        return np.linalg.norm(white_ND[:, None] - self.means_KD, axis=-1)

    def choose(
        self, features_ND: Features, allowed: Collection[str] | None = None, *, with_base: bool = True
    ) -> list[str | None]:
        """Choose who answers each prompt: the nearest specialist of those whose limit it keeps.

        ``None`` is the base.

        Args:
            features_ND: of the prompts.
            allowed: the specialists that may answer; all by default.
            with_base: if False, the nearest specialist answers, however far it is.

        Raises:
            ValueError: nobody may answer.
        """
        some = [k for k, name in enumerate(self.names) if allowed is None or name in allowed]
        if not some:
            if not with_base:
                raise ValueError("neither a specialist nor the base may answer")
            return [None] * len(features_ND)
        distances_NK = self.distances(features_ND)[:, some]
        chosen = list[str | None]()
        for row in distances_NK:
            is_near = row <= self.limits_K[some]
            if with_base and not is_near.any():
                chosen.append(None)
            else:
                nearest = np.where(is_near, row, np.inf) if is_near.any() else row
                chosen.append(self.names[some[int(nearest.argmin())]])
        return chosen


def fit(
    train: Mapping[str, Features],
    limiting: Mapping[str, Features],
    *,
    layers: int,
    tokens: int,
    base_digest: str,
    dtype: str = "",
) -> Router:
    """Fit a router.

    Args:
        train: prompts of each specialist, shape (N, D), at least two of each.
        limiting: others of each specialist, at least `FEWEST_TO_LIMIT`, which set how far a prompt may be:
            one more prompt that is drawn as these were is farther with a probability of at most `MISSED`
            (split conformal prediction, arXiv:2107.07511). Prompts of few sources promise less for others;
            therefore no limit is less than half the distance to the nearest other specialist's mean.
        layers, tokens, base_digest, dtype: see `Router`.

    Raises:
        UsageError: there are too few prompts.
    """
    for name, found in train.items():
        if len(found) < 2 or len(limiting[name]) < FEWEST_TO_LIMIT:
            raise UsageError(
                f"{name} has {len(found)} prompts to learn from and {len(limiting[name])} to set its limit; "
                f"expected at least 2 and {FEWEST_TO_LIMIT}"
            )
    means = {name: found.mean(axis=0) for name, found in train.items()}
    centered_ND = np.concatenate([found - means[name] for name, found in train.items()])
    values_D, vectors_DD = np.linalg.eigh(_covariance(centered_ND, len(train)))
    whitening_DD = vectors_DD / np.sqrt(values_D)
    # As a file stores them, so that a router that was read decides as the one that was fitted.
    whitening_DD = whitening_DD.astype(np.float32).astype(np.float64)
    means_KD = (np.stack([*means.values()]) @ whitening_DD).astype(np.float32).astype(np.float64)
    unlimited = Router(
        tuple(train), means_KD, whitening_DD, np.full(len(train), np.inf), layers, tokens, base_digest, dtype
    )
    limits_K = np.empty(len(train))
    for k, name in enumerate(train):
        own = np.sort(unlimited.distances(limiting[name])[:, k])
        to_others = np.linalg.norm(np.delete(means_KD, k, axis=0) - means_KD[k], axis=-1)
        half = to_others.min() / 2 if len(to_others) else 0.0
        limits_K[k] = max(own[math.ceil((len(own) + 1) * (1 - MISSED)) - 1], half)
    return replace(unlimited, limits_K=limits_K)


def _covariance(centered_ND: Features, groups: int) -> Features:
    """Covariance of prompts around the means of their groups, shrunk toward a multiple of one.

    There are fewer prompts than dimensions. The share of the shrinkage is that of oracle approximating
    shrinkage (Chen et al., arXiv:0907.4698).
    """
    prompts, width = centered_ND.shape
    free = max(prompts - groups, 1)
    found_DD = centered_ND.T @ centered_ND / free
    scale = float(np.trace(found_DD)) / width
    if not scale:
        raise UsageError("all prompts of each specialist are equal; a router needs several tasks of each")
    squares = float(np.square(found_DD).mean())
    excess = (free + 1) * (squares - scale**2 / width)
    shrink = min((squares + scale**2) / excess, 1.0) if excess > 0 else 1.0
    return (1 - shrink) * found_DD + shrink * scale * np.eye(width)


def write_router(router: Router, path: Path) -> None:
    """Write a router as safetensors, all or nothing."""
    from safetensors.numpy import save

    header = {
        "version": _VERSION,
        "base_digest": router.base_digest,
        "dtype": router.dtype,
        "layers": str(router.layers),
        "names": json.dumps(router.names),
        "tokens": str(router.tokens),
    }
    tensors = {
        "means": router.means_KD.astype(np.float32),
        "whitening": router.whitening_DD.astype(np.float32),
        "limits": router.limits_K,
    }
    write_atomic(path, save(tensors, metadata=header))


def read_router(path: Path) -> Router:
    """Read what `write_router` wrote.

    Raises:
        ModelError: the file cannot be read, or is no router.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with cast("Any", safe_open(path, framework="numpy")) as file:
            header = cast("dict[str, str]", file.metadata() or {})
            if header.get("version") != _VERSION or not header.keys() >= {*_HEADER}:
                raise ValueError(f"its header is {header}")
            means, whitening, limits = (
                cast("Features", file.get_tensor(name)).astype(np.float64)
                for name in ("means", "whitening", "limits")
            )
        names = cast("list[object]", json.loads(header["names"]))
        router = Router(
            tuple(map(str, names)),
            means,
            whitening,
            limits,
            int(header["layers"]),
            int(header["tokens"]),
            header["base_digest"],
            header["dtype"],
        )
        _require_shapes(router)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no router ({error}); expected a file that `envkit study specialists` wrote"
        ) from error
    return router


def _require_shapes(router: Router) -> None:
    """Raise ``ValueError`` unless the parts of a router fit together."""
    count, width = len(router.names), len(router.whitening_DD)
    expected: Sequence[tuple[Features, tuple[int, ...]]] = (
        (router.means_KD, (count, width)),
        (router.whitening_DD, (width, width)),
        (router.limits_K, (count,)),
    )
    for found, shape in expected:
        if found.shape != shape or not np.isfinite(found).all():
            raise ValueError(f"a tensor of shape {found.shape} is not one of {shape} finite numbers")
    if not count or min(router.layers, router.tokens) < 1:
        raise ValueError("it has no specialists, layers or tokens")
