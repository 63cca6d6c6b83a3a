"""Where samples come from: each module turns one layout into a `Dataset`."""
