"""Mirror twins: pairs of small models whose pre-training differed in planted content alone, and what is left of it.

    names     "twin:A,seed=3" → twin, seed and the folder in the cache
    twins     pre-trains a twin when it is first opened
    traces    measures the planted content, the loss on the fine-tuning task and on the model's own

The corpora are in ba_lora/data/planted. docs/laboratory.md describes the study, configs/experiments/laboratory.yaml holds it.
"""
