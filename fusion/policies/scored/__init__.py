"""Policies that look at what each LoRA does to the features."""
