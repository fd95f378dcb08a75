"""vLLM in this process: the engine, its thread, its start, and how it applies adapters on a CPU.

The only folder that imports vLLM, beside `stock`. Read `engine` first, then `worker`.
"""
