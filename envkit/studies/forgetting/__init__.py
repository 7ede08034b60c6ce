"""Does RL forget less than supervised training?"""
