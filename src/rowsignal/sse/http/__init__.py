"""Requests and answers: routes, parameters, problems, OpenAPI."""
