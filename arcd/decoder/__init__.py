"""The decoder that arcd trains on: Llama's layers, for frozen weights with LoRA or for full ones.

elementwise   norm, rotary positions, gate: compiled where a compiler is there
attention     causal attention over lessons that stand one after another in a row
lora          a frozen linear layer with low-rank factors beside it
dropout       of their inputs, the same for the same seed
footprint     the memory that a step takes, by arithmetic
layers        a decoder layer, and the whole decoder
folder        reads a Hugging Face folder of the Llama family
answers       the loss over the tokens that an answer can have

Knows nothing of tasks, adapters' files, optimizers or who trains.
"""
