"""Before training: is there something to learn from, and would a better message do?"""
