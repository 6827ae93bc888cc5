//! A fake NVML.
pub mod machine;
