//! The wire format: protobuf messages, generated code and conversions.
