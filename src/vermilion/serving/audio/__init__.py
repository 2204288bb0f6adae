"""Speech to text and text to speech over OpenAI's routes, on models of this machine."""
