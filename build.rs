//! Keeps `include/httpdown.h` equal to what `src/ffi` says, and names the shared library.
#![allow(clippy::expect_used, reason = "a build script fails by panicking")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if target != "linux" {
        // Here, and not by `compile_error!`, which comes along with an error for each system call that is not there.
        println!(
            "cargo::error=httpdown runs on Linux only, because its stop asks the kernel there; this is {target}"
        );
        return;
    }
    // The number goes up when programs linked against the last version would break.
    let soname = concat!("libhttpdown.so.", env!("CARGO_PKG_VERSION_MAJOR"));
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    // Our threads may still run when the host unloads us: stay.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    #[cfg(feature = "capi")]
    header::check();
}

#[cfg(feature = "capi")]
mod header {
    use std::{env, fs, path::Path};

    /// Every file that C can see something of, in header order.
    const SOURCES: &[&str] = &[
        "src/ffi/types.rs",
        "src/ffi/options.rs",
        "src/ffi/server.rs",
        "src/ffi/request.rs",
        "src/ffi/ready.rs",
        "src/ffi/stream.rs",
        "src/ffi/files.rs",
        "src/ffi/record.rs",
        "src/ffi/tls.rs",
        "src/ffi/restart.rs",
        "src/ffi/query.rs",
        "src/ffi/clock.rs",
    ];
    const HEADER: &str = "include/httpdown.h";

    pub(crate) fn check() {
        println!("cargo::rerun-if-changed=cbindgen.toml");
        println!("cargo::rerun-if-changed=src/ffi");
        println!("cargo::rerun-if-changed={HEADER}");
        println!("cargo::rerun-if-env-changed=HTTPDOWN_UPDATE_HEADER");
        let generated = render();
        if generated == fs::read_to_string(HEADER).unwrap_or_default() {
            return;
        }
        if env::var_os("HTTPDOWN_UPDATE_HEADER").is_some() {
            fs::write(HEADER, generated).expect("include/ is writable");
        } else {
            println!("cargo::error={HEADER} is stale; run `make header` and commit the result");
        }
    }

    fn render() -> String {
        let mut config =
            cbindgen::Config::from_file("cbindgen.toml").expect("cbindgen.toml parses");
        let version = |part: &str| {
            let value = env::var(format!("CARGO_PKG_VERSION_{part}")).expect("cargo sets it");
            format!("\n#define HTTPDOWN_VERSION_{part} {value}")
        };
        let versions = ["MAJOR", "MINOR", "PATCH"].map(version).concat();
        let text = format!(
            "\n#define HTTPDOWN_VERSION \"{}\"",
            env!("CARGO_PKG_VERSION")
        );
        let rest = config.after_includes.take().unwrap_or_default();
        // `make install TLS=0` changes it.
        let tls = "\n/* Whether the library has TLS. */\n#define HTTPDOWN_HAS_TLS 1";
        config.after_includes = Some(format!("{text}{versions}\n{tls}\n{rest}"));

        let builder = cbindgen::Builder::new().with_config(config);
        let mut out = Vec::new();
        SOURCES
            .iter()
            .fold(builder, |builder, path| builder.with_src(Path::new(path)))
            .generate()
            .expect("src/ffi parses")
            .write(&mut out);
        String::from_utf8(out).expect("cbindgen writes UTF-8")
    }
}
