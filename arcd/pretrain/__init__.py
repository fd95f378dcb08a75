"""Pretraining of arcd's own small base model: its corpus, its decoder, the training loop.

Needed by `arcd pretrain` alone.
"""
