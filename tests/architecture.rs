//! The law of the house: who may name whom, read from the sources.
