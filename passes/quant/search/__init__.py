"""What becomes integers: plans, the models made of them, what was measured, and which is kept."""
