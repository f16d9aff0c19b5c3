"""Training-free attentions from the literature: one file each, on the contract of ``nystra_bench.attention.base``."""
