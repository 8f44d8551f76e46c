"""How changes get from their source to the buffers of the readers."""
