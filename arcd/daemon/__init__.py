"""The daemon, its supervisor, and the ways to talk to it.

One process holds the models and the store; another one restarts it. Clients speak HTTP.
"""
