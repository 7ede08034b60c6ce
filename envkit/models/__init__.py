"""Models: a model id or path becomes a folder of safetensors with a digest."""

from envkit.models.choice import SHORT_MINUTES, available_bytes, choose_model
from envkit.models.known import DEFAULT_MODEL, KNOWN, SMALL_MODEL, KnownModel
from envkit.models.reference import (
    ModelRef,
    is_fetched,
    model_errors,
    require_training,
    resolve,
    weights_digest,
)
from envkit.models.speeds import MeasuredSpeed, known_speed, remember_speed
from envkit.models.tokens import token_counter, tokenizer_at_hand

__all__ = [
    "DEFAULT_MODEL",
    "KNOWN",
    "SHORT_MINUTES",
    "SMALL_MODEL",
    "KnownModel",
    "MeasuredSpeed",
    "ModelRef",
    "available_bytes",
    "choose_model",
    "is_fetched",
    "known_speed",
    "model_errors",
    "remember_speed",
    "require_training",
    "resolve",
    "token_counter",
    "tokenizer_at_hand",
    "weights_digest",
]
