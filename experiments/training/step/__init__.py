"""The compiled updates, what feeds them, and how they are put together."""
