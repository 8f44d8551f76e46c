"""The demonstration of relays and gateways, whose parts are killed while readers follow them."""
