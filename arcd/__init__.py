"""arcd: test-time fine-tuning on ARC-AGI with a resident base model and a running vLLM engine."""

__version__ = "0.1.0"
