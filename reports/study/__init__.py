"""The report of a published study: what it concludes, where it erred, what was reproduced."""
