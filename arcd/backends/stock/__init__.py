"""Training and sampling as most scripts do it today: transformers + peft, then vLLM as it comes.

`arcd bench` measures arcd against this. Nothing here uses arcd's trainer, engine or vLLM plugin, so
that arcd cannot make its own baseline faster. Knows nothing of tasks beyond lessons and requests.
"""
