//! Untrusted code: isolation, limits and two-process grading.
