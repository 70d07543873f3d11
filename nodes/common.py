"""What all our nodes share."""

CATEGORY = "LoRA Conductor"
