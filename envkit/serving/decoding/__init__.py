"""Decoding threads and processes behind the web application, and the router in front of adapters."""
