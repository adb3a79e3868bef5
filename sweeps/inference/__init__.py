"""What a benchmark of inference asks and finds: its spec and points, the table of measurements, the runtime
model fitted to it, where one architecture overtakes the other, and what training and serving cost together.
"""
