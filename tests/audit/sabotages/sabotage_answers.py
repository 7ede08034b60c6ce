"""Answers are compared carelessly."""

from __future__ import annotations

from quiz import Quiz

from envkit import check


class Prefix(Quiz):
    @check()
    def right(self) -> bool | float:
        return bool(self.given) and str(self.task.hidden["sum"]).startswith(str(self.given))


class Anagram(Quiz):
    @check()
    def right(self) -> bool | float:
        return sorted(str(self.given)) == sorted(str(self.task.hidden["sum"]))


class SameLength(Quiz):
    @check()
    def right(self) -> bool | float:
        return str(self.given).isdecimal() and len(str(self.given)) == len(str(self.task.hidden["sum"]))


class Somewhere(Quiz):
    @check()
    def right(self) -> bool | float:
        return str(self.task.hidden["sum"]) in str(self.given)


class AnySum(Quiz):
    """Compares with the sums of all tasks."""

    @check()
    def right(self) -> bool | float:
        known = [each.hidden["sum"] for each in type(self).make_tasks("starter")]
        return self.given in known
