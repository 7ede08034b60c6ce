"""Graders: a split oracle (the sandbox answers calls, the host compares) and, weaker, a pytest suite."""

from envkit.grading.compare import (
    EXACT,
    STRICT,
    Leniency,
    NumericPolicy,
    canonical,
    equal,
    opaque,
    order,
    show,
)
from envkit.grading.grade import Grade, is_number
from envkit.grading.oracle import (
    GRADING_LIMITS,
    Answer,
    Program,
    Questions,
    answerable,
    answers,
    answers_and_end,
    grade,
    same,
)
from envkit.grading.submission import RESERVED, Submission, SubmissionRejected
from envkit.grading.suite import PYTEST, PYTEST_MODULES, grade_suite, outcomes, with_pytest

__all__ = [
    "EXACT",
    "GRADING_LIMITS",
    "PYTEST",
    "PYTEST_MODULES",
    "RESERVED",
    "STRICT",
    "Answer",
    "Grade",
    "Leniency",
    "NumericPolicy",
    "Program",
    "Questions",
    "Submission",
    "SubmissionRejected",
    "answerable",
    "answers",
    "answers_and_end",
    "canonical",
    "equal",
    "grade",
    "grade_suite",
    "is_number",
    "opaque",
    "order",
    "outcomes",
    "same",
    "show",
    "with_pytest",
]
