"""A voice agent: speech recognition, a diffusion model that answers, speech synthesis, and interruptions."""
