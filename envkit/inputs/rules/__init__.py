"""Rules that the arguments of all example calls follow, so that generated arguments can follow them too."""
