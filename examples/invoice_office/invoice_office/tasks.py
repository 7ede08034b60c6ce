"""Generated tasks at three levels; they follow from a seed.

    1  one reminder, or one payment for one invoice
    2  read a bank statement, then match the payment of one customer
    3  read a bank statement, match all payments, then remind all who are late

Train and held-out tasks are about different customers.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from typing import Any

from envkit import Task

#: Workspace paths of the office's data and of the bank statement.
START, STATEMENT = "start.json", "bank.csv"
TODAY = "2027-03-15"
_CUSTOMERS = {
    "train": (
        *("Abel Tools", "Birch & Co", "Cedar Print", "Dunlin Cafe", "Elm Dental", "Falcon Cycles"),
        *("Gorse Garden", "Heron Books", "Ivy Clinic", "Juniper Taxi", "Kestrel Audio", "Larch Bakery"),
    ),
    "heldout": ("Maple Works", "Nettle Farm", "Osprey Boats", "Pine Design", "Quail Foods", "Rowan Motors"),
}
_COUNT = {"train": 240, "heldout": 120}
_INVOICES = 8


def generate(split: str) -> list[Task]:
    """Return the tasks of a split: ``"train"``, ``"heldout"``, or ``"starter"`` for a few train tasks."""
    if split == "starter":
        return generate("train")[:6]
    return [_task(split, number) for number in range(_COUNT[split])]


def _task(split: str, number: int) -> Task:
    draw = random.Random(f"{split} {number}")
    level = number % 3 + 1
    customers = draw.sample(_CUSTOMERS[split], 6)
    invoices = _invoices(draw, customers)
    late = [one for one in invoices if one["state"] == "open" and one["due"] < TODAY]
    on_time = [one for one in invoices if one["state"] == "open" and one["due"] >= TODAY]
    payments: list[dict[str, Any]] = []
    matches: dict[int, int] = {}
    reminders: list[int] = []
    if level == 1 and number % 2:
        reminders = [draw.choice(late)["number"]]
        prompt = f"Send a reminder for invoice {reminders[0]}."
    elif level == 1:
        paid = draw.choice([*late, *on_time])
        payments, matches = [_payment(draw, paid)], {1: paid["number"]}
        prompt = f"{paid['customer']} has paid. Match payment 1 with the right invoice."
    else:
        paid = draw.sample([late[0], *on_time], 3)
        payments = [_payment(draw, one) for one in paid]
        if level == 2:
            at = draw.randrange(3)
            matches = {at + 1: paid[at]["number"]}
            prompt = f"Import {STATEMENT}. Then match the payment of {paid[at]['customer']} with its invoice."
        else:
            matches = {at + 1: one["number"] for at, one in enumerate(paid)}
            reminders = [one["number"] for one in late if one not in paid]
            prompt = (
                f"Import {STATEMENT} and match every payment with its invoice. "
                "Then send a reminder for every invoice that is overdue and not paid."
            )
    has_statement = level > 1
    start = {"today": TODAY, "invoices": invoices, "payments": [] if has_statement else payments}
    files = {START: json.dumps(start)}
    if has_statement:
        files[STATEMENT] = _csv(payments)
    return Task(
        id=f"{split}/level-{level}-{number}",
        split=split,
        prompt=f"Today is {TODAY}. {prompt}",
        files=files,
        metadata={"source": f"{split} {number}", "operator": f"level {level}", "level": level},
        hidden={
            "statements": [STATEMENT] if has_statement else [],
            "matches": [[payment, invoice] for payment, invoice in matches.items()],
            "reminders": reminders,
        },
    )


def _invoices(draw: random.Random, customers: Sequence[str]) -> list[dict[str, Any]]:
    """Eight invoices: three late, three on time, two paid. Two of equal amount have different customers."""
    states = [("open", "2027-02"), ("open", "2027-03-0"), ("open", "2027-01")] + [("open", "2027-04")] * 3
    states += [("paid", "2027-02")] * 2
    draw.shuffle(states)
    amounts = draw.sample(range(40, 900, 5), _INVOICES - 1)
    amounts.append(amounts[0])
    found: list[dict[str, Any]] = []
    for at, (state, month) in enumerate(states):
        day = str(draw.randint(1, 9)) if month.endswith("0") else f"-{draw.randint(10, 28)}"
        customer = customers[at % len(customers)]
        row = {"number": 1001 + at, "customer": customer, "amount": amounts[at], "due": month + day}
        found.append({**row, "state": state})
    return found


def _payment(draw: random.Random, invoice: dict[str, Any]) -> dict[str, Any]:
    text = draw.choice((f"Invoice {invoice['number']}", f"INV-{invoice['number']}", "with thanks"))
    day = f"2027-03-{draw.randint(10, 14)}"
    return {"day": day, "payer": invoice["customer"], "amount": invoice["amount"], "text": text}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["day", "payer", "amount", "text"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
