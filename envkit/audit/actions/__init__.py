"""Actions that an audit makes up: hostile ones, other answers, claims, and words of the source."""
