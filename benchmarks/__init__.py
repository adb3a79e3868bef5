"""Measurements that go into the documentation, with the code that makes them."""
