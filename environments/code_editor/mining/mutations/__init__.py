"""Mutations: one small change of a function, the search among all of them, and runs of many variants."""
