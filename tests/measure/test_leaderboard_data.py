"""The leaderboard's numbers: equal conditions, costs, ranks and comparisons."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from sample_reports import CONDITIONS, report, sample_row

from envkit.errors import UsageError
from envkit.measure.leaderboard.data import TWO_CORES, Leaderboard, make_leaderboard, usd_per_solved
from envkit.measure.leaderboard.recipes import differences_of
from envkit.measure.leaderboard.table import provenance
from envkit.measure.report.data import Machine, Origin, ReportData
from envkit.runtime.prices import Price, PriceTable
from envkit.sandbox import Lock

TABLE = PriceTable("2026-01-01", "a test", {"gpt-5.6": Price(4.0, 20.0, 0.4)}, {"box": 3.6})


def board(*reports: ReportData, against: str | None = None) -> Leaderboard:
    return make_leaderboard(reports, TABLE, "box", against)


def test_rows_are_ranked_and_controls_come_last() -> None:
    [section] = board(report()).sections
    assert [row.name for row in section.rows] == [
        "big & <b>bold</b>",
        "gpt-4-0613",
        "SFT+RL",
        "base",
        "oracle",
        "no-op",
    ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tasks": "0ther"}, "tasks (7a5c5 and 0ther)"),
        ({"code": "0ther"}, "code (c0de and 0ther)"),
        ({"max_turns": 3}, "max_turns (1 and 3)"),
        ({"seed": 2}, "seed (1 and 2)"),
    ],
)
def test_unequal_conditions_are_refused_and_named(changed: dict[str, object], named: str) -> None:
    other = replace(report("bench-2"), conditions=replace(CONDITIONS, **changed))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bench-1 and bench-2 differ") as caught:
        board(report(), other)
    assert named in str(caught.value)


def test_runs_with_different_packages_are_refused_and_the_versions_named() -> None:
    def with_(*packages: str) -> ReportData:
        lock = Lock(packages)
        conditions = replace(CONDITIONS, lock=lock.digest)
        return replace(report(f"bench-{len(packages)}"), conditions=conditions, contents=str(lock))

    assert board(with_("six==1.16.0"), replace(with_("six==1.16.0"), run="bench-9"))
    with pytest.raises(UsageError) as caught:
        board(with_("six==1.16.0"), with_())
    held = Lock(("six==1.16.0",))
    assert f"differ in what sandboxes held ({held}; and nothing beside Python) of code-editor" in str(
        caught.value
    )


def test_conditions_of_earlier_reports_keep_their_digest() -> None:
    earlier = {"environment": "code-editor", "code": "c0de", "tasks": "7a5c5", "max_turns": 1, "seed": 1}
    digest = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()
    assert CONDITIONS.digest == digest
    assert replace(CONDITIONS, lock="10c4").digest != digest


def test_a_report_without_conditions_is_refused() -> None:
    with pytest.raises(UsageError, match="bench-0 was made by an older version"):
        board(report(), replace(report("bench-0"), conditions=None))


def test_two_environments_need_not_share_conditions() -> None:
    found = board(report(), report("bench-2", "sql-desk"))
    assert [section.conditions.environment for section in found.sections] == ["code-editor", "sql-desk"]


def test_equal_names_of_two_runs_get_the_run_id_and_controls_appear_once() -> None:
    [section] = board(report("one"), report("two")).sections
    names = [row.name for row in section.rows]
    assert names.count("oracle") == 1
    assert {"base · one", "base · two"} <= set(names)
    assert len(names) == len(set(names)) == 10


def test_a_run_that_is_named_twice_counts_once() -> None:
    # As text, because NaN differs from itself.
    assert repr(board(report(), report())) == repr(board(report()))


def test_a_control_that_fails_in_one_run_is_not_hidden_by_another() -> None:
    other = report("two")
    failing = replace(other.rows[0], results=tuple(replace(item, solved=0) for item in other.rows[0].results))
    [section] = board(report("one"), replace(other, rows=(failing, *other.rows[1:]))).sections
    rates = {row.name: row.summary.solve_rate.interval for row in section.rows if "oracle" in row.name}
    assert {name: rate.estimate for name, rate in rates.items() if rate} == {
        "oracle": 1.0,
        "oracle · two": 0.0,
    }


def test_tokens_are_paid_by_the_providers_price_and_hours_by_the_machines() -> None:
    [section] = board(report()).sections
    rows = {row.name: row for row in section.rows}
    live, local = rows["big & <b>bold</b>"], rows["SFT+RL"]
    # 240 tries of 1,000 tokens at $4 and 100 at $20 per million.
    assert live.cost.total_usd == pytest.approx(240 * (1000 * 4 + 100 * 20) / 1e6)
    solved = sum(item.solved for item in live.measured.results)
    assert usd_per_solved(live) == pytest.approx(live.cost.total_usd / solved)
    # 240 tries of 2 s at $3.60 an hour, and 1,200 s of training.
    assert local.cost.total_usd == pytest.approx(240 * 2 * 0.001)
    assert local.training_usd == pytest.approx(1.2)


def test_cached_tokens_have_their_own_price() -> None:
    live = report().rows[4]
    cached = replace(
        live, results=tuple(replace(item, cached_tokens=item.prompt_tokens) for item in live.results)
    )
    [section] = board(replace(report(), rows=(cached,))).sections
    assert section.rows[0].cost.total_usd == pytest.approx(240 * (1000 * 0.4 + 100 * 20) / 1e6)


def test_unpriced_row_gives_the_reason_and_is_not_on_the_frontier() -> None:
    unpriced = sample_row("mystery", Origin("live", "no-such-model"), 0.95)
    [section] = board(replace(report(), rows=(*report().rows, unpriced))).sections
    rows = {row.name: row for row in section.rows}
    assert "no price for 'no-such-model'" in rows["mystery"].cost.basis
    assert rows["gpt-4-0613"].cost.basis == "its tokens were not recorded"
    assert math.isnan(rows["gpt-4-0613"].cost.total_usd)
    assert [name for name, row in rows.items() if not row.dominated and row.cost.per_solved] == [
        "big & <b>bold</b>",
        "SFT+RL",
    ]


def test_every_row_says_how_it_was_sampled() -> None:
    base = report().rows[2]
    stopped = replace(base, name="stopped", origin=replace(base.origin, stop_strings=("\n",)))
    bound = replace(base, name="bound", origin=replace(base.origin, max_context_length=512))
    [section] = board(replace(report(), rows=(base, stopped, bound))).sections
    table = provenance(section)
    sampling = {row[0]: row[table.head.index("Sampling")] for row in table.rows}
    assert sampling == {
        "base": "temperature 0.7, 128 tokens",
        "stopped": "temperature 0.7, 128 tokens, up to '\\n'",
        "bound": "temperature 0.7, 128 tokens, asked with up to 512",
    }


def test_every_row_says_its_own_model_and_weights_whatever_it_is_priced_as() -> None:
    rows = (
        sample_row("live", Origin("live", "provider/m", price="gpt-5.6"), 0.5),
        sample_row("one", Origin("local", "small", digest="1" * 64), 0.5),
        sample_row("other", Origin("local", "large", digest="2" * 64), 0.5),
    )
    [section] = board(replace(report(), rows=rows)).sections
    table = provenance(section)
    models = {row[0]: row[table.head.index("Model")] for row in table.rows}
    assert models == {"live": "provider/m", "one": f"small {'1' * 12}", "other": f"large {'2' * 12}"}
    [basis] = [row.cost.basis for row in section.rows if row.name == "live"]
    assert basis == "tokens of gpt-5.6 at $4 and $20 per million"


def test_reference_is_the_trained_row_unless_another_is_named() -> None:
    [section] = board(report()).sections
    assert section.reference == "SFT+RL"
    compared = {row.name: row.versus for row in section.rows}
    assert compared["SFT+RL"] is None
    assert compared["oracle"] is None
    base = compared["base"]
    assert base is not None
    assert base.difference.interval is not None
    assert base.difference.interval.high < 0
    assert base.p_value <= base.adjusted < 0.01
    [section] = board(report(), against="base").sections
    assert section.reference == "base"
    with pytest.raises(UsageError, match=r"no row is named 'nobody'; choose one of: .*SFT"):
        board(report(), against="nobody")


def test_row_with_fewer_tasks_ranks_behind_complete_rows() -> None:
    local, short = Origin("local", "m"), sample_row("short", Origin("local", "m"), 0.9)
    short = replace(short, results=short.results[:20])
    rows = (sample_row("best", local, 0.5), sample_row("worst", local, 0.1), short)
    [section] = board(replace(report(), rows=rows)).sections
    assert [row.name for row in section.rows] == ["best", "worst", "short"]
    assert [row.name for row in section.complete] == ["best", "worst"]
    assert section.lead_p < 0.01  # of the best against the worst
    assert [row.name for row in section.rows if row.dominated] == ["worst"]
    [section] = board(replace(report(), rows=(rows[0], short))).sections
    assert math.isnan(section.lead_p)


def test_a_row_with_void_tasks_ranks_behind_complete_rows() -> None:
    local = Origin("local", "m")
    best, lost = sample_row("best", local, 0.5), sample_row("lost", local, 0.9)
    void = tuple(replace(item, samples=0, solved=0, voids=4) for item in lost.results[20:])
    lost = replace(lost, results=(*lost.results[:20], *void))
    [section] = board(replace(report(), rows=(lost, best))).sections
    assert [row.name for row in section.rows] == ["best", "lost"]
    assert [row.name for row in section.complete] == ["best"]
    assert not section.rows[0].dominated


def test_a_board_of_one_source_shows_no_difference() -> None:
    rows = [sample_row(name, Origin("local", "m"), rate, tasks=2) for name, rate in (("a", 1.0), ("b", 0.0))]
    [section] = board(replace(report(), rows=tuple(rows))).sections
    assert section.lead_p == 1.0


def test_reference_can_be_named_with_its_run_id() -> None:
    [section] = board(report("one"), report("two"), against="base · two").sections
    assert section.reference == "base · two"
    with pytest.raises(
        UsageError, match="several rows are named 'base'; choose one of: base · one, base · two"
    ):
        board(report("one"), report("two"), against="base")


def test_answers_of_a_killed_run_are_priced_by_their_original_time() -> None:
    served = Origin("live", "mine", machine="box", seconds=4800.0)
    rows = [sample_row("going on", served, 0.5), sample_row("at once", replace(served, seconds=10.0), 0.5)]
    [section] = board(replace(report(), rows=tuple(rows))).sections
    costs = {row.name: row.cost.total_usd for row in section.rows}
    # 240 tries of 2 s at $3.60 an hour, if their calls took no longer.
    assert costs == {"going on": pytest.approx(4.8), "at once": pytest.approx(0.48)}


def test_calls_without_an_answer_are_priced() -> None:
    lost = replace(sample_row("lost", Origin("live", "gpt-5.6", prompt_tokens=10**6), 0.0))
    items = tuple(replace(item, completion_tokens=0, prompt_tokens=0) for item in lost.results)
    [section] = board(replace(report(), rows=(replace(lost, results=items),))).sections
    assert section.rows[0].cost.total_usd == pytest.approx(4.0)


def test_mcnemar_is_for_single_tries_only() -> None:
    once = [
        sample_row(name, Origin("recorded", name), rate, samples=1) for name, rate in (("a", 0.9), ("b", 0.3))
    ]
    [section] = board(replace(report(), rows=tuple(once)), against="b").sections
    first = section.rows[0].versus
    assert first is not None
    assert 0 < first.mcnemar < 0.001
    [section] = board(report()).sections
    assert all(math.isnan(row.versus.mcnemar) for row in section.rows if row.versus)


def test_break_even_after_a_number_of_solved_tasks() -> None:
    [section] = board(report()).sections
    [found] = section.break_even
    rows = {row.name: row for row in section.rows}
    assert (found.trained, found.other) == ("SFT+RL", "big & <b>bold</b>")
    for name, rate in (("SFT+RL", found.trained_rate), (found.other, found.other_rate)):
        measured = rows[name].summary.solve_rate.interval
        assert measured is not None
        assert rate == measured.estimate
    saves = usd_per_solved(rows[found.other]) - usd_per_solved(rows[found.trained])
    assert found.saves_usd == pytest.approx(saves)
    assert found.solved_tasks == pytest.approx(1.2 / saves) if saves > 0 else math.isinf(found.solved_tasks)


def test_a_row_that_solves_nothing_never_pays_off() -> None:
    trained = sample_row("SFT+RL", replace(report().rows[3].origin), 0.0)
    [section] = board(replace(report(), rows=(report().rows[4], trained))).sections
    assert math.isinf(usd_per_solved(section.rows[1]))
    assert [pair.solved_tasks for pair in section.break_even] == [math.inf]


def test_unknown_training_cost_is_not_called_free() -> None:
    origin = replace(report().rows[3].origin, training_seconds=math.nan)
    [section] = board(replace(report(), rows=(report().rows[4], sample_row("SFT+RL", origin, 0.5)))).sections
    assert math.isnan(section.rows[1].training_usd)
    [found] = section.break_even
    assert found.saves_usd > 0
    assert math.isnan(found.solved_tasks)


def test_break_even_of_an_unpriced_adapter_is_unknown_not_never() -> None:
    elsewhere = replace(report(), machine=replace(report().machine, cores=64))
    [section] = make_leaderboard([elsewhere], TABLE).sections
    [found] = section.break_even
    assert math.isnan(found.saves_usd)
    assert math.isnan(found.solved_tasks)


def test_a_machine_without_a_price_is_refused() -> None:
    with pytest.raises(UsageError, match="no price for machine 'abacus'; there is: box"):
        make_leaderboard([report()], TABLE, "abacus")


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (Machine("A CPU", 2, 2, "bfloat16"), "hours of cpu-2-cores at $0.05"),
        (Machine("A CPU", 1, 1, "bfloat16"), "hours of half of cpu-2-cores at $0.025"),
        (Machine("A CPU", 64, 64, "bfloat16"), "it ran on 64 cores of A CPU, which have no price; name"),
        (
            Machine("A CPU", 2, 2, "bfloat16", card="A card"),
            "it ran on A card and 2 cores of A CPU, which have no price",
        ),
    ],
)
def test_hours_are_those_of_the_machine_that_a_row_ran_on_unless_another_is_named(
    machine: Machine, said: str
) -> None:
    elsewhere, priced = (
        replace(report(), machine=machine),
        replace(TABLE, machines={TWO_CORES: 0.05, "box": 3.6}),
    )
    for named, basis in ((None, said), ("box", "hours of box at $3.6")):
        [section] = make_leaderboard([elsewhere], priced, named).sections
        rows = {row.name: row for row in section.rows}
        assert rows["SFT+RL"].cost.basis.startswith(basis)
        known = basis.startswith("hours")
        assert math.isfinite(rows["SFT+RL"].cost.total_usd) == known
        assert math.isfinite(rows["SFT+RL"].training_usd) == known
        assert rows["base"].training_usd == 0.0
        assert rows["big & <b>bold</b>"].cost.basis.startswith("tokens of gpt-5.6")


def seeds(*names: str) -> ReportData:
    """Return a report with trained rows of these names, each with an adapter and results of its own."""
    found = report()
    rows = [
        sample_row(name, replace(found.rows[3].origin, adapter=f"ada{i}"), 0.3 + i / 10, seed=i)
        for i, name in enumerate(names)
    ]
    return replace(found, rows=(*found.rows, *rows))


@pytest.mark.parametrize("ending", [", seed {}", "@seed-{}"])  # the second is what a bench says
def test_seeds_of_a_recipe_are_taken_together(ending: str) -> None:
    one, two = (
        seeds(*("trained" + ending.format(seed) for seed in (0, 1))),
        replace(seeds("trained"), run="bench-2"),
    )
    two = replace(
        two, rows=(two.rows[2], replace(two.rows[-1], origin=replace(two.rows[-1].origin, adapter="x")))
    )
    [section] = make_leaderboard([one, two], TABLE, "box", seeds=True).sections
    [recipe] = [recipe for recipe in section.recipes if recipe.name == "trained"]
    rates = [
        row.summary.solve_rate.interval for row in section.rows if row.measured.name.startswith("trained")
    ]
    assert recipe.seeds == 3
    assert recipe.mean is not None
    assert recipe.mean.estimate == pytest.approx(sum(rate.estimate for rate in rates if rate) / 3)
    assert {recipe.name: recipe.seeds for recipe in section.recipes}["base"] == 1  # measured twice
    pairs = {(found.recipe, found.against) for found in differences_of(section.recipes)}
    assert ("trained", "base") in pairs
    assert all("trained" in pair for pair in pairs)
    assert board(one, two).sections[0].recipes == ()


def test_rows_of_different_models_are_no_seeds() -> None:
    one, two = seeds("trained, seed 0"), replace(seeds("trained, seed 1"), run="bench-2")
    *others, last = two.rows
    moved = replace(last, origin=replace(last.origin, adapter="x", model="larger", digest="other"))
    with pytest.raises(UsageError, match="rows named 'trained' are no seeds of one recipe"):
        make_leaderboard([one, replace(two, rows=(*others, moved))], TABLE, "box", seeds=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"temperature": 0.0}, r"temperature \(0.0 and 0.7"),
        ({"temperature": math.nan}, r"temperature \(nan and 0.7"),
        ({"max_completion_length": 64}, r"token limit of a turn \(64 and 128"),
        ({"stop_strings": ("\n",)}, r"stop strings \("),
        ({"max_context_length": 512}, r"token limit of the context \(512 and 0"),
        ({"shots": 3}, r"number of shots \(3 and 0"),
        ({"system": "5e7"}, r"system message \(5e7 and none"),
    ],
)
def test_rows_of_different_settings_are_no_seeds(setting: dict[str, Any], said: str) -> None:
    found = seeds("trained, seed 0", "trained, seed 1")
    *others, last = found.rows
    moved = replace(last, origin=replace(last.origin, **setting))
    with pytest.raises(UsageError, match=f"'trained' are no seeds of one recipe: they differ in {said}"):
        make_leaderboard([replace(found, rows=(*others, moved))], TABLE, "box", seeds=True)


def test_seeds_that_are_not_there_are_not_taken_together() -> None:
    with pytest.raises(UsageError, match="no two rows of one name have different adapters"):
        make_leaderboard([report()], TABLE, "box", seeds=True)


def test_only_tasks_that_a_row_never_solved() -> None:
    found = report()
    [section] = make_leaderboard([found], TABLE, "box", unsolved_by="SFT+RL").sections
    assert "Some of them it failed by chance" in section.selection
    left = {result.task for result in found.rows[3].results if not result.solved}
    assert 0 < len(left) < 60
    first, *others = found.rows[3].results
    assert first.solved
    ungraded = replace(found.rows[3], results=(replace(first, samples=0, solved=0, voids=4), *others))
    broke = replace(found, rows=(*found.rows[:3], ungraded, *found.rows[4:]))
    [section_without] = make_leaderboard([broke], TABLE, "box", unsolved_by="SFT+RL").sections
    for row in section_without.rows:
        assert {result.task for result in row.measured.results} == left
    for row in section.rows:
        assert {result.task for result in row.measured.results} == left
    [paid] = [row for row in section.rows if row.measured.origin.kind == "live"]
    assert paid.cost.total_usd == pytest.approx(len(left) * 4 * (1000 * 4 + 100 * 20) / 1e6)


def test_a_script_that_fails_a_task_fails_it_always() -> None:
    [section] = make_leaderboard([report()], TABLE, "box", unsolved_by="no-op").sections
    assert section.selection == "Only tasks that no-op never solved."
    [section] = make_leaderboard([report()], TABLE, "box").sections
    assert section.selection == ""


@pytest.mark.parametrize(
    ("name", "said"), [("oracle", "'oracle' solved every task"), ("x", "no row is named 'x'")]
)
def test_a_row_that_leaves_no_task_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"{said}; choose one of: oracle, no-op, base, "):
        make_leaderboard([report()], TABLE, "box", unsolved_by=name)
