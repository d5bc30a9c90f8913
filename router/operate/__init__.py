"""Operations: they are planned, recorded, and driven by one router of all (RFC 0009)."""
