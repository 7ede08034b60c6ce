"""The model card of an adapter: which row of a report is the adapter."""

from __future__ import annotations

from dataclasses import replace

import sample_reports

from envkit.measure.report.model_card import ModelCard, render_card, rows_of


def test_a_row_with_another_system_message_is_not_the_adapter() -> None:
    report = sample_reports.report()
    own = next(row for row in report.rows if row.name == "SFT+RL")
    prompted = replace(own, name="prompted", origin=replace(own.origin, system="a digest"))
    report = replace(report, rows=(*report.rows, prompted))
    adapter = own.origin.adapter
    assert rows_of(report, adapter) == [own]
    assert rows_of(report, "another") == []
    card = ModelCard("me/it", adapter, "m", "d", "all-linear", 3, (), {}, (report,), 0, "")
    assert b"This adapter is the row **SFT+RL**." in render_card(card)
