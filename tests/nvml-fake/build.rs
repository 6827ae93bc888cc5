//! Link options of the shared library.

fn main() {
    // The driver's state must outlive `dlclose`: `nvml-wrapper` closes the library when it is dropped, while
    // the control thread still runs inside it, and a real driver forgets nothing at that moment either.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
