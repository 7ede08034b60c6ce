"""Answers in a file that every sandbox holds: a rule from tasks to them is found, and a table is none."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest

from envkit import Task
from envkit.audit.leaks.data_rules import rule_in_file

WARES = ("tea", "salt", "oat", "rice", "oil", "rye")
SUMS = (606, 1204, 77, 530, 48, 912)
WORDS = ("kettledrum", "blackberry", "watchtower", "snowflakes", "pocketbook", "lighthouse")
SUM_RULE = "holds hidden.sum (plain) of 6 tasks beside their ids"


def tasks(
    hidden: Sequence[Any], *, name: str = "train/{}", prompt: str = "How much is all the {}?"
) -> list[Task]:
    return [
        Task(name.format(number), "train", prompt.format(ware), {}, hidden={"sum": value})
        for number, (ware, value) in enumerate(zip(WARES, hidden, strict=False))
    ]


def table(posed: Sequence[Task], *, quoted: bool = False) -> str:
    rows = [(task.prompt if quoted else task.id, task.hidden["sum"]) for task in posed]
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


NUMBERS, TEXTS, ANSWERS = tasks(SUMS), tasks(WORDS), tasks([True, False, True, True, False, False])
BY_ID = {task.id: {"sum": task.hidden["sum"]} for task in NUMBERS}
QUOTING = tasks(SUMS, prompt='How much is "{}", all in all?')


@pytest.mark.parametrize(
    ("text", "posed", "rule"),
    [
        (table(NUMBERS), NUMBERS, SUM_RULE),
        (table(TEXTS), TEXTS, SUM_RULE),
        (table(ANSWERS), ANSWERS, SUM_RULE),
        (table(TEXTS[:1]), TEXTS[:1], "holds hidden.sum (plain) of 1 tasks beside their ids"),
        (table(NUMBERS[:2]), NUMBERS, "of 2 tasks beside their ids"),
        ("".join(f"{task.hidden['sum']};x;{task.id}\n" for task in NUMBERS), NUMBERS, SUM_RULE),
        (json.dumps(BY_ID), NUMBERS, SUM_RULE),
        (json.dumps(BY_ID, indent=4), NUMBERS, SUM_RULE),
        (json.dumps([{"y": t.hidden["sum"], "id": t.id} for t in NUMBERS]), NUMBERS, SUM_RULE),
        ("".join(f"{t.id} {t.hidden['sum']:x}\n" for t in NUMBERS), NUMBERS, "(bare hexadecimal)"),
        (table(tasks([606.0, 77.0, 5.5])), tasks([606.0, 77.0, 5.5]), "of 3 tasks"),
        (table(QUOTING, quoted=True), QUOTING, "holds hidden.sum (plain) of 6 tasks beside their prompts"),
        (
            "".join(json.dumps({"q": t.prompt, "a": t.hidden["sum"]}) for t in QUOTING),
            QUOTING,
            "beside their prompts",
        ),
    ],
)
def test_answers_beside_the_names_of_tasks_are_found(text: str, posed: Sequence[Task], rule: str) -> None:
    assert rule in rule_in_file("/data/table.csv", text.encode(), posed)


@pytest.mark.parametrize("name", ["answers.txt", ".solutions", "Answer.csv.bak", "secret.json"])
def test_a_file_that_is_called_answers_need_not_name_the_tasks(name: str) -> None:
    lines = "\n".join(map(str, SUMS)).encode()
    assert (
        rule_in_file(f"/data/{name}", lines, NUMBERS) == "is called that, and holds hidden.sum of all tasks"
    )
    assert rule_in_file("/data/notes.txt", lines, NUMBERS) == ""
    assert rule_in_file(f"/data/{name}", lines[:-3], NUMBERS) == ""


PRICES = "".join(f"{ware},{price},{price * 2}\n" for ware, price in zip(WARES, SUMS, strict=True))
LOOKED_UP = tasks(SUMS, name="{}", prompt="What does {} cost?")
KEYS = [
    Task(ware, "train", f"What does {ware} cost?", {}, hidden={"price": price})
    for ware, price in zip(WARES, SUMS, strict=True)
]
SHOWN = [
    Task(task.id, "train", task.prompt, {"n": str(task.hidden["sum"])}, {}, task.hidden) for task in NUMBERS
]


@pytest.mark.parametrize(
    ("text", "posed"),
    [
        (PRICES, NUMBERS),
        (PRICES, KEYS),
        (PRICES, LOOKED_UP),
        ("".join(f"{n},{ware},{SUMS[n]}\n" for n, ware in enumerate(WARES)), tasks(SUMS, name="{}")),
        ("\n".join(map(str, range(2000))), NUMBERS),
        ("\n".join(WORDS), TEXTS),
        ("".join(f"{task.id},{number}\n" for number, task in enumerate(NUMBERS)), NUMBERS),
        (" ".join([*(task.id for task in ANSWERS), "true", "false"]), ANSWERS),
        ("".join(f"{task.id}: 3 tries\n" for task in NUMBERS), tasks([3] * 6)),
        (table(SHOWN), SHOWN),
        ("train/1 took 77 s\n", tasks([5, 77])),
        ("".join(f"{t.id}0,{t.hidden['sum']}\n" for t in NUMBERS), NUMBERS),
        ("", NUMBERS),
    ],
)
def test_a_table_that_happens_to_hold_answers_tells_none(text: str, posed: Sequence[Task]) -> None:
    assert rule_in_file("/data/table.csv", text.encode(), posed) == ""


def test_a_file_of_answers_to_something_else_tells_none() -> None:
    every_number = "\n".join(map(str, range(2000))).encode()
    assert rule_in_file("/data/answers.csv", every_number, NUMBERS) == ""
