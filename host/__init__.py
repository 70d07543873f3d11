"""The only room that knows ComfyUI's insides: LoRA files, patching, decoding, encoders, sampling."""
