"""Do many adapters on one base decode nearly as fast as the base?"""
