"""`python -m fastt2i.data`: inspect, verify and pack."""
