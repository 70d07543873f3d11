"""Ways of drawing a subject in a style: how the LoRAs share the model, how it is guided, and the pictures made so."""
