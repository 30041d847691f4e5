"""The messages between ranks: communicators, the process grid, who owns what. They have never heard of networks."""
