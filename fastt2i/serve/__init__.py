"""A web page and an interface for programs around one trained model."""
