"""From a checked body to engine requests, and from engine events to replies, streams and tool calls."""
