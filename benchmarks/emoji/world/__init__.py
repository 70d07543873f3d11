"""The small world itself: its pictures and words, what is trained on them, and all of it in ComfyUI."""
