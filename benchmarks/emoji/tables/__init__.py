"""What is shown of the figures: documents with their rows, sheets, the demo's pictures."""
