"""The leaderboard: ranked rows of several runs, as one page, Markdown and CSV."""
