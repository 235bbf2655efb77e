"""Does a merged adapter still know its tasks? LoRA adapters trained, merged and evaluated on a CPU; see docs/quality.md."""
