"""The studio: a local page that shows which expert the network trusts, where, and what came of it."""
