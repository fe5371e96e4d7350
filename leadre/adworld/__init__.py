"""A synthetic display-ad world: users read content, form intents, see ads that won an auction, and click."""
