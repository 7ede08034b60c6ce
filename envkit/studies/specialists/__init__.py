"""Do many specialists behind a router on one base beat any single adapter?"""
