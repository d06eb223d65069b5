"""The cost of the regularizers: step time and peak memory as ratios to plain PiSSA with the stock transformers loss.

Work: one micro-batch of random tokens without padding. A step is forward, backward and AdamW on the trained tensors, through
the modules that training uses, with all three terms at full weight. Times: all contestants run in one process and take turns
(A, B, C, A, B, C, …) after a warm-up each; a ratio is the median over the rounds of the ratio within a round. Memory: each
figure comes from a fresh process, as its peak over two steps with nothing subtracted (interpreter, libraries and model are
included), without the time before the first step. glibc keeps freed memory, which would count as used, so those processes run
with MALLOC_MMAP_THRESHOLD_=65536, which returns every larger block at once. On CUDA the peak is torch's allocation.

Bodies (--body) are too large for a process each: random weights of published sizes are made on the device, and the contestants follow
each other on one model in one process. Times are those of the device's events; a ratio is that of the medians.
"""
