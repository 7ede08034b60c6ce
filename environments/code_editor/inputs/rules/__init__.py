"""Rules that all example arguments follow, inferred so that generated arguments follow them too."""
