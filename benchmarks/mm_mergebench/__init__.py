"""MM-MergeBench, the protocol of arXiv 2502.17159 for LLaVA-1.5: from the published files to its Table 2. See command.py."""
