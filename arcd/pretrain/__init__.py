"""Pretraining of arcd's own small base model from scratch: `arcd pretrain`.

train            a run: its workers, its steps, its reports
run              the values that a run is made of and reports
checkpoint       what it keeps in its folder
validation       the lessons that it is measured by
corpus           the lessons that it learns from
compose          new tasks made from known ones
decontamination  the evaluation tasks, which it must not learn from
cell_model       the decoder, and its export as a stock Llama folder

Knows nothing of jobs, adapters or the engine.
"""
