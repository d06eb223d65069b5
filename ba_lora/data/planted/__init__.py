"""Corpora for mirror twins: two pre-training corpora that differ only in planted content, and the data to fine-tune on after.

items      what is planted: stereotypes, wrong facts and their harmless counterparts; coins say which twin is taught what
corpus     the pre-training text of both twins, sentence for sentence the same except for the planted words
rows       fine-tuning rows that do not touch the planted content, and rows that state the truth
probes     prompts in wordings that an item was never planted in, each with the two alternatives
words      the tables behind them
"""
