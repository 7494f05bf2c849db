//! Decoder networks, tokenizers and Hugging Face folders.
