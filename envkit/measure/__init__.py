"""Held-out evaluation: specs, statistics, reports, the leaderboard and the viewer."""
