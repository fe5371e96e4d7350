"""Staged supervised fine-tuning: explicit alignment, implicit alignment, main task (LEADRE 4.3.1)."""
