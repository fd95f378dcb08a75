"""Between grids and a language model: encodings, prompts, the base model's folder, batches.

torch and transformers are imported only by what needs a model or tensors. Knows nothing of training
or serving.
"""
