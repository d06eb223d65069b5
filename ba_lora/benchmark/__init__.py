"""What the regularizers cost: step time and peak memory as ratios to plain PiSSA with the stock transformers loss.

Work: one micro-batch of random tokens without padding; a step is forward, backward and AdamW on the trained tensors, through
the modules that training uses, with all three terms at full weight. Times: all contestants in one process, taking turns
(A, B, C, A, B, C, …) after a warm-up each; a ratio is the median over the rounds of the ratio within a round. Memory: a fresh
process for each figure, its peak over two steps with nothing subtracted (interpreter, libraries and model are in it), without
the time before the first step. glibc keeps freed memory for itself, which would count as used: those processes run with
MALLOC_MMAP_THRESHOLD_=65536, which hands every larger block back at once. On CUDA the peak is what torch has allocated.
"""
