"""The HTTP edge: application, middleware, authentication, body parsing, error rendering, event streams."""
