"""The command line: one function for each verb.

Nothing else imports this room. Heavy imports stand inside the verbs.
"""
