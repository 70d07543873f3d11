"""Whether a picture shows that subject in that style, and how sure one may be of a method."""
