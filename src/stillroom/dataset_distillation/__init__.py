"""A few synthetic examples that teach a network nearly what many real ones would: made, kept, used as a source."""
