"""Prompts and responses: what the language model reads about a user, and the ad it shall answer."""
