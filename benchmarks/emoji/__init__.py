"""The small world: a FLUX trained on emoji, in which every subject in every style has a true picture."""
