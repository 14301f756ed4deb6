//! Finding, grading and explaining attention sinks.
