"""Delivery: the way of changes from a feed to the buffers of the readers."""
