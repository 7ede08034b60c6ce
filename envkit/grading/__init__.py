"""Grading by split oracle: the sandbox answers calls, the host compares."""

from envkit.grading.compare import STRICT, NumericPolicy, canonical, equal, opaque, show
from envkit.grading.handover import RESERVED, Handover, NotAccepted
from envkit.grading.oracle import GRADING_LIMITS, Answer, Call, Grade, Subject, answers, grade, same

__all__ = [
    "GRADING_LIMITS",
    "RESERVED",
    "STRICT",
    "Answer",
    "Call",
    "Grade",
    "Handover",
    "NotAccepted",
    "NumericPolicy",
    "Subject",
    "answers",
    "canonical",
    "equal",
    "grade",
    "opaque",
    "same",
    "show",
]
