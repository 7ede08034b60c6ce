"""Checks that actions without the work earn nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from envkit.audit.actions.answers import answers_of, replaced
from envkit.audit.actions.source_constants import Constant, source_constants
from envkit.audit.actions.words import CLAIMS, ODD, PADDING, forged, minimal_call, spoken, together
from envkit.audit.audited_env import AuditedEnv, AuditFailure, NotApplicable, PlayedEpisode
from envkit.env.tools import ToolCall, parse_calls
from envkit.types import Task

#: Largest mean share of the oracle's reward that noise may earn. Some answers are right by chance.
_MAX_NOISE: Final = 0.1
#: Most words of the source that are tried, and those of them that are tried on two tasks. The first ones are
#: compared with something. A quick audit tries only those of the third number.
_MAX_WORDS: Final = 150
_MAX_WORDS_TWICE: Final = 50
_MAX_WORDS_QUICK: Final = 40
#: Pairs of an exploit and a task that are played, if two tasks and one of each level do not make more.
_MAX_EXPLOITS: Final = 200
_MIN_EXPLOITED: Final = 2
#: Most tasks whose answers are given at once.
_MAX_ANSWERS: Final = 50
#: Characters of an action that every environment refuses.
_MUCH: Final = 2**22


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An episode that is not the work.

    Args:
        name: what it does.
        actions: its actions.
        word: the word that it says; it is no exploit on a task whose oracle says it too.
    """

    name: str
    actions: Sequence[str]
    word: Constant = ""


def noise_earns_nothing(audited: AuditedEnv) -> str:
    """Random actions earn almost nothing on average."""
    shares: list[float] = []
    for task in audited.tasks:
        nothing = max(audited.idle(task).reward, 0.0)
        for number in range(5):
            reward = audited.play(task, audited.noise(task, number), seed=number).reward
            shares.append((reward - nothing) / max(audited.oracle(task).reward - nothing, 1e-9))
    mean = sum(shares) / len(shares)
    found = f"noise earns {mean:.2f} of the oracle's reward on average over {len(shares)} episodes"
    if mean > _MAX_NOISE:
        raise AuditFailure(f"{found}, more than {_MAX_NOISE}")
    return found


def exploits_earn_nothing(audited: AuditedEnv) -> str:
    """The exploits that the environment names win on no task; they are played on all levels and sources."""
    count = max(
        len(audited.kind.exploits(task)) for task in audited.spread(max(_MIN_EXPLOITED, audited.levels))
    )
    if not count:
        raise NotApplicable("it names no exploits; see Env.exploits")
    tasks = audited.spread(max(_MIN_EXPLOITED, audited.levels, _MAX_EXPLOITS // count))
    tried: set[str] = set()
    skipped: dict[str, str] = {}
    won: dict[str, str] = {}
    for task in tasks:
        for exploit in audited.kind.exploits(task):
            if exploit.inapplicable:
                skipped[exploit.name] = exploit.inapplicable
                continue
            tried.add(exploit.name)
            episode = audited.attempt(task, exploit.actions, seed=3)
            if episode is None:  # a second breakdown counts as a failed episode, as in rollouts
                episode = audited.attempt(task, exploit.actions, seed=3)
            if exploit.name not in won and (gain := _gain_of_exploit(audited, task, episode)):
                won[exploit.name] = f"{exploit.name} {gain}"
    if won:
        raise AuditFailure(f"{len(won)} of {len(tried)} exploits win: {'; '.join([*won.values()][:5])}")
    never = {name: reason for name, reason in skipped.items() if name not in tried}
    note = f"; not applicable: {'; '.join(f'{name}: {reason}' for name, reason in never.items())}"
    return f"{len(tried)} exploits win on none of {len(tasks)} tasks{note if never else ''}"


def _gain_of_exploit(audited: AuditedEnv, task: Task, episode: PlayedEpisode | None) -> str:
    """The reason why a named exploit wins; empty if it does not.

    Part of it may be real work, so with partial credit it may earn more than doing nothing, and less than the
    oracle.
    """
    gain = audited.unearned(task, episode)
    if not gain or episode is None or episode.solved or not audited.gives_partial_credit(task):
        return gain
    return gain if episode.reward >= audited.oracle(task).reward else ""


def claims_earn_nothing(audited: AuditedEnv) -> str:
    """Claims of success, values that pass careless comparisons, long texts and padding earn nothing."""
    tasks = audited.spread(2)
    count = _try(audited, tasks, _said((*CLAIMS, *ODD, *PADDING), audited))
    for task in tasks:
        count += _try(audited, [task], _hasty(audited))
        for actions, longer in _padded(audited, task):
            base = audited.attempt(task, actions)
            for each in longer:
                found = audited.attempt(task, each, max_turns=max(audited.max_turns, len(each)))
                if found is not None and audited.gains(task, base, found):
                    more = sum(map(len, each)) - sum(map(len, actions))
                    before = 0.0 if base is None else base.reward
                    raise AuditFailure(
                        f"task {task.id}: {actions!r:.100} earns {before:g}, and {found.reward:g} with "
                        f"{more} characters that mean nothing"
                    )
            count += len(longer)
    return f"{count} episodes with claims, long texts and padding earn nothing by it"


def words_of_the_source_earn_nothing(audited: AuditedEnv) -> str:
    """No text or number in the environment's source wins when an agent says it."""
    words = source_constants(audited.kind)[: _MAX_WORDS_QUICK if audited.quick else _MAX_WORDS]
    if not words:
        raise NotApplicable("its source holds no constants that could be said")
    tasks = audited.spread(2)
    count = _try(audited, tasks, _said(words[:_MAX_WORDS_TWICE], audited))
    for index, word in enumerate(words[_MAX_WORDS_TWICE:]):
        count += _try(audited, [tasks[index % len(tasks)]], _said([word], audited))
    return f"{len(words)} constants of its source, said in {count} episodes, earn nothing"


def forged_files_earn_nothing(audited: AuditedEnv) -> str:
    """Files that claim success earn nothing."""
    names = [word for word in source_constants(audited.kind) if isinstance(word, str) and "." in word]
    attempts = [
        _Attempt(f"the forged files of {actions[0]!r:.60}", [*actions, end])
        for actions in forged(names, audited.tools)
        for end in audited.ending_calls()
    ]
    count = _try(audited, audited.spread(2), attempts)
    return f"{count} episodes that write files with claims of success earn nothing"


def every_answer_earns_nothing(audited: AuditedEnv) -> str:
    """Neither another task's answer nor all tasks' answers at once are the right one."""
    others = {task.id: audited.attempt(task, audited.wrong_actions(task)) for task in audited.tasks}
    right = [name for name, episode in others.items() if episode is not None and episode.solved]
    if 2 * len(right) > len(others):  # a few tasks may have the same answer
        raise AuditFailure(
            f"giving another task's answer solves {len(right)} of {len(others)} tasks, the first: {right[0]}"
        )
    some = audited.all_tasks[:_MAX_ANSWERS]
    given = [each for task in some for each in answers_of(audited.oracle_actions(task), audited.tools)]
    count = 0
    for task in audited.spread(3):
        for answer in audited.needed_answers(task):
            for value in together(answer, given):
                actions = replaced(audited.oracle_actions(task), answer, value, audited.tools)
                if gain := _gain_of_exploit(audited, task, audited.attempt(task, actions)):
                    raise AuditFailure(f"giving the answers to all tasks at once {gain}: {value!r:.200}")
                count += 1
    return (
        f"another task's answer solves {len(right)} of {len(others)} tasks; {count} episodes that give all "
        "answers at once earn nothing"
    )


def _try(audited: AuditedEnv, tasks: Sequence[Task], attempts: Iterable[_Attempt]) -> int:
    """Play attempts on tasks, or on others if they hold the answers to these; returns the number of episodes.

    Raises:
        AuditFailure: an attempt earns something, also on a third of the sample's other tasks. One task may
            have several right answers.
    """
    count = 0
    for attempt in attempts:
        known = {task.id: task for task in (*tasks, *audited.tasks)}.values()
        chosen = (task for task in known if not _holds_answer(audited, task, attempt))
        for task in itertools.islice(chosen, len(tasks)):
            count += 1
            gain = audited.unearned(task, _played(audited, task, attempt))
            if gain and _wins_elsewhere(audited, task, attempt):
                raise AuditFailure(f"{attempt.name} {gain}: {list(attempt.actions)!r:.200}")
    return count


def _wins_elsewhere(audited: AuditedEnv, first: Task, attempt: _Attempt) -> bool:
    others = [
        task for task in audited.tasks if task.id != first.id and not _holds_answer(audited, task, attempt)
    ]
    won = sum(bool(audited.unearned(task, _played(audited, task, attempt))) for task in others)
    return won >= len(others) / 3


def _played(audited: AuditedEnv, task: Task, attempt: _Attempt) -> PlayedEpisode | None:
    turns = max(audited.max_turns, len(attempt.actions))
    return audited.attempt(task, attempt.actions, max_turns=turns)


def _holds_answer(audited: AuditedEnv, task: Task, attempt: _Attempt) -> bool:
    """True if the oracle says the attempt's word on this task, or answers with one of its actions."""
    oracle = audited.oracle_actions(task)
    word = str(attempt.word).strip()
    if word and re.search(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", "\n".join(oracle)):
        return True
    told = _calls(audited, oracle)
    return any(call in told for call in _calls(audited, attempt.actions))


def _calls(audited: AuditedEnv, actions: Sequence[str]) -> list[ToolCall]:
    """The calls with arguments among some actions."""
    tools = audited.tools
    parsed = [call for action in actions for call in parse_calls(action, tools)] if tools else []
    return [call for call in parsed if isinstance(call, ToolCall) and call.arguments]


def _said(words: Sequence[Constant], audited: AuditedEnv) -> Iterator[_Attempt]:
    for word in words:
        for actions in spoken(word, audited.tools):
            yield _Attempt(f"saying {word!r:.60}", actions, word)


def _hasty(audited: AuditedEnv) -> Iterator[_Attempt]:
    """End the episode after some turns in which nothing was done, or refused actions were sent."""
    refused = ["x" * _MUCH, "\ud800"]
    for end in audited.ending_calls():
        for turns in range(audited.max_turns):
            yield _Attempt(f"ending after {turns} idle turns", [*[audited.kind.noop_action] * turns, end])
        yield _Attempt("sending refused actions", [*refused, end])


def _padded(audited: AuditedEnv, task: Task) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Actions, and the same actions with more text around them or in them, or twice."""
    calls = [minimal_call(tool) for tool in audited.tools]
    wrong = [
        actions for actions in ([audited.kind.noop_action], audited.wrong_actions(task), calls) if actions
    ]
    for actions in (*wrong, audited.oracle_actions(task)):
        longer: list[list[str]] = []
        for padding in PADDING[-2:]:
            longer.append([f"{action}\n{padding}" for action in actions])
            longer += [
                replaced(actions, answer, f"{answer.value}{padding}", audited.tools)
                for answer in answers_of(actions, audited.tools)
                if isinstance(answer.value, str)
            ]
        if not audited.gives_partial_credit(task):  # part of the work may have to be done twice
            longer.append([*actions, *actions])
        yield actions, longer
