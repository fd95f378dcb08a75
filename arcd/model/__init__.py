"""Between grids and a language model: encodings, prompts, the base model's folder, batches.

Imports torch and transformers only where a model is loaded. Knows nothing of training or serving.
"""
