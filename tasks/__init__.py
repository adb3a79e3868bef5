"""Prefect tasks and what they stand on: state folder, services, process isolation."""
