"""Commands that speak to a running cluster."""
