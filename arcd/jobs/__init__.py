"""Jobs and what happened to them: events, the state folded from them, the store that keeps both.

Knows nothing of how tasks are solved or of who asks.
"""
