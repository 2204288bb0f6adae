"""The service on a Ray cluster: HTTP in one deployment, engines in others."""
