"""Models that run on other servers, behind the same seam as the engine of this process."""
