"""Recorded runs, and what the front page says of them."""
