"""LoRA fusion: deltas, scores, routing policies, layers and the routing record.

Plain PyTorch: nothing in here imports ComfyUI, so every formula can be tested on its own.
"""
