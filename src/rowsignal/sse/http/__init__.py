"""Requests and responses: routes, parameters, problems, OpenAPI."""
