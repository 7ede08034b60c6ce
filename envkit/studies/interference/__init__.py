"""Does one adapter hold several unrelated tasks, or does one task cost another?"""
