"""The HTTP service: OpenAI's wire format, with what is particular to diffusion added. Never imports torch."""
